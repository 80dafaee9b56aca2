// CUDA C++ on the processor: a block's threads are fibers that take turns, and wait where the language says so. It has
// what CubeCL writes and no more: what is missing does not compile.
// It lies there under several names, which a compiler takes for several files.
#ifndef SATEEN_PROCESSOR
#define SATEEN_PROCESSOR
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __shared__
#define __restrict__
#define __launch_bounds__(...)
#define __grid_constant__
#undef __align__
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
    unsigned x, y, z;
};
struct Fiber {
    ucontext_t context;
    uint3 thread;
    unsigned warp, lane;
    bool is_done;
    std::vector<char> stack;
};
struct Barrier {
    unsigned n_expected, n_arrived, generation;
};

inline Fiber *current;
inline ucontext_t scheduler;
inline Barrier block_barrier;
inline std::vector<Barrier> warp_barriers;
inline uint3 blockIdx, blockDim, gridDim;
inline const unsigned warpSize = 32;
#define threadIdx (current->thread)

inline void wait(Barrier &barrier) {
    unsigned generation = barrier.generation;
    if (++barrier.n_arrived == barrier.n_expected) {
        barrier.n_arrived = 0;
        barrier.generation++;
    }
    while (barrier.generation == generation) swapcontext(&current->context, &scheduler);
}
inline void __syncthreads() { wait(block_barrier); }
inline void __syncwarp() { wait(warp_barriers[current->warp]); }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

using std::exp, std::fma, std::max, std::min, std::round, std::sqrt;

struct alignas(2) __half {
    _Float16 value;
    __half() = default;
    explicit __half(float value) : value(_Float16(value)) {}
    operator float() const { return float(value); }
};

// What the lanes of a warp give each other.
struct Exchange {
    uint32_t a[32][4], b[32][2];
};
inline std::vector<Exchange> exchanges;

// mma.m16n8k32 of signed bytes, row by column: which lane has what of the matrices is in the PTX ISA.
inline void multiply_small_matrices(const uint32_t a[4], const uint32_t b[2], const uint32_t c[4], uint32_t d[4]) {
    Exchange &exchange = exchanges[current->warp];
    memcpy(exchange.a[current->lane], a, sizeof exchange.a[0]);
    memcpy(exchange.b[current->lane], b, sizeof exchange.b[0]);
    __syncwarp();
    uint32_t sums[4];
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = current->lane / 4 + 8 * (i / 2), column = current->lane % 4 * 2 + i % 2;
        sums[i] = c[i];
        for (unsigned k = 0; k < 32; k++) {
            uint32_t of_a = exchange.a[row % 8 * 4 + k % 16 / 4][row / 8 + 2 * (k / 16)];
            uint32_t of_b = exchange.b[column * 4 + k % 16 / 4][k / 16];
            unsigned shift = 8 * (k % 4);
            sums[i] += uint32_t(int8_t(of_a >> shift) * int8_t(of_b >> shift));
        }
    }
    __syncwarp();
    memcpy(d, sums, sizeof sums);
}
template <typename Value> Value __shfl_xor_sync(unsigned, Value value, unsigned mask) {
    static_assert(sizeof(Value) == 4);
    Exchange &exchange = exchanges[current->warp];
    memcpy(exchange.b[current->lane], &value, 4);
    __syncwarp();
    memcpy(&value, exchange.b[current->lane ^ mask], 4);
    __syncwarp();
    return value;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint64_t(a) * b >> 32; }

typedef void (*Kernel)(void **);
inline Kernel running;
inline void **arguments;
inline void run_fiber() {
    running(arguments);
    current->is_done = true;
    swapcontext(&current->context, &scheduler);
}

// One block after the other.
inline void run_grid(Kernel kernel, void **parameters, uint3 grid, uint3 block) {
    running = kernel;
    arguments = parameters;
    gridDim = grid;
    blockDim = block;
    unsigned n = block.x * block.y * block.z, n_warps = (n + 31) / 32;
    std::vector<Fiber> fibers(n);
    for (Fiber &fiber : fibers) fiber.stack.resize(96 << 10);
    for (unsigned at = 0; at < grid.x * grid.y * grid.z; at++) {
        blockIdx = {at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y};
        block_barrier = {n, 0, 0};
        warp_barriers.assign(n_warps, {32, 0, 0});
        warp_barriers.back().n_expected = n - 32 * (n_warps - 1);
        exchanges.resize(n_warps);
        for (unsigned i = 0; i < n; i++) {
            Fiber &fiber = fibers[i];
            fiber.thread = {i % block.x, i / block.x % block.y, i / block.x / block.y};
            fiber.warp = i / 32;
            fiber.lane = i % 32;
            fiber.is_done = false;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            makecontext(&fiber.context, run_fiber, 0);
        }
        for (unsigned n_left = n; n_left > 0;) {
            for (Fiber &fiber : fibers) {
                if (fiber.is_done) continue;
                current = &fiber;
                swapcontext(&scheduler, &fiber.context);
                n_left -= fiber.is_done;
            }
        }
    }
}
#endif
