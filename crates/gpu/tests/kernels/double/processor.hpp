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
struct alignas(2) __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float value) {
        uint32_t single;
        memcpy(&single, &value, 4);
        bits = (single + 0x7fff + (single >> 16 & 1)) >> 16;
    }
    operator float() const {
        uint32_t single = uint32_t(bits) << 16;
        float value;
        memcpy(&value, &single, 4);
        return value;
    }
};
template <typename Number> struct alignas(4) Two {
    Number x, y;
    Two operator-(Two other) const { return {Number(float(x) - float(other.x)), Number(float(y) - float(other.y))}; }
};
typedef Two<__half> __half2;
typedef Two<__nv_bfloat16> __nv_bfloat162;

// What the lanes of a warp give each other.
struct Exchange {
    uint32_t a[32][4], b[32][2];
};
inline std::vector<Exchange> exchanges;

// What a word has at a shift, as instructions of matrices multiply it.
template <typename Number> struct Numbers {
    typedef float Sum;
    static constexpr unsigned bits = 16;
    static float at(uint32_t word, unsigned shift) {
        uint16_t half = word >> shift;
        Number value;
        memcpy(&value, &half, 2);
        return float(value);
    }
};
typedef Numbers<__half> Halves;
typedef Numbers<__nv_bfloat16> UpperHalves;
struct SignedBytes {
    typedef int32_t Sum;
    static constexpr unsigned bits = 8;
    static int32_t at(uint32_t word, unsigned shift) { return int8_t(word >> shift); }
};
// mma.m16n8k32 of bytes and mma.m16n8k16 of numbers, row by column: which lane has what of the matrices is in the PTX
// ISA.
template <typename Factor>
void multiply_small_matrices(const uint32_t a[4], const uint32_t b[2], const void *c, void *d) {
    typedef typename Factor::Sum Sum;
    constexpr unsigned n_together = 32 / Factor::bits, n_inputs = 8 * n_together;
    Exchange &exchange = exchanges[current->warp];
    memcpy(exchange.a[current->lane], a, sizeof exchange.a[0]);
    memcpy(exchange.b[current->lane], b, sizeof exchange.b[0]);
    __syncwarp();
    Sum sums[4];
    memcpy(sums, c, sizeof sums);
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = current->lane / 4 + 8 * (i / 2), column = current->lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < n_inputs; k++) {
            unsigned half = k / (n_inputs / 2), of_group = k % (n_inputs / 2) / n_together;
            uint32_t of_a = exchange.a[row % 8 * 4 + of_group][row / 8 + 2 * half];
            uint32_t of_b = exchange.b[column * 4 + of_group][half];
            unsigned shift = k % n_together * Factor::bits;
            sums[i] += Factor::at(of_a, shift) * Factor::at(of_b, shift);
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
