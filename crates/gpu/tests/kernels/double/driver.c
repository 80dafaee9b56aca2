// A CUDA driver without a GPU: memory is the machine's, and kernels run on the processor. What it has is what CubeCL
// asks of one.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef void *Handle;
typedef uint64_t Pointer;
enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };

static char object;

static Result give(Handle *handle) {
    *handle = &object;
    return SUCCESS;
}

static Result allocate(Pointer *pointer, size_t size) {
    size_t whole = (size + 511) / 512 * 512;
    void *memory = aligned_alloc(512, whole);
    if (memory == NULL) return OUT_OF_MEMORY;
    *pointer = (Pointer)(uintptr_t)memset(memory, 0, whole);
    return SUCCESS;
}

Result cuInit(unsigned flags) { return SUCCESS; }
Result cuDriverGetVersion(int *version) { *version = 12090; return SUCCESS; }
Result cuGetErrorName(Result error, const char **name) { *name = "an error"; return SUCCESS; }
Result cuGetErrorString(Result error, const char **words) { *words = "an error"; return SUCCESS; }

Result cuDeviceGet(int *device, int index) { *device = index; return SUCCESS; }
Result cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
Result cuDeviceGetName(char *name, int size, int device) { strncpy(name, "double", size); return SUCCESS; }
Result cuDeviceTotalMem_v2(size_t *size, int device) { *size = (size_t)8 << 30; return SUCCESS; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: *value = 1024; break;                                    // threads of a block
    case 2: case 3: *value = 1024; break;                            // a block's sides
    case 4: *value = 64; break;
    case 5: *value = 2147483647; break;                              // a grid's sides
    case 6: case 7: *value = 65535; break;
    case 8: *value = 49152; break;                                   // shared memory of a block
    case 10: *value = 32; break;                                     // threads of a warp
    case 16: *value = 128; break;                                    // multiprocessors
    case 75: *value = 8; break;                                      // compute capability
    case 76: *value = 6; break;
    case 97: *value = 101376; break;                                 // shared memory of a block that asks for it
    default: *value = 1;
    }
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(Handle *context, int device) { return give(context); }
Result cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
Result cuCtxSetCurrent(Handle context) { return SUCCESS; }
Result cuCtxGetCurrent(Handle *context) { return give(context); }

Result cuStreamCreate(Handle *stream, unsigned flags) { return give(stream); }
Result cuStreamCreateWithPriority(Handle *stream, unsigned flags, int priority) { return give(stream); }
Result cuStreamSynchronize(Handle stream) { return SUCCESS; }
Result cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) { return SUCCESS; }
Result cuStreamDestroy_v2(Handle stream) { return SUCCESS; }
Result cuEventCreate(Handle *event, unsigned flags) { return give(event); }
Result cuEventRecord(Handle event, Handle stream) { return SUCCESS; }
Result cuEventSynchronize(Handle event) { return SUCCESS; }
Result cuEventDestroy_v2(Handle event) { return SUCCESS; }

// Of the pool one attribute is known, the bytes that it keeps when a stream is waited for.
Result cuDeviceGetDefaultMemPool(Handle *pool, int device) { return give(pool); }
Result cuMemPoolSetAttribute(Handle pool, int attribute, const uint64_t *value) {
    return pool == &object && attribute == 4 && *value == UINT64_MAX ? SUCCESS : NOT_FOUND;
}
Result cuMemAlloc_v2(Pointer *pointer, size_t size) { return allocate(pointer, size); }
Result cuMemAllocAsync(Pointer *pointer, size_t size, Handle stream) { return allocate(pointer, size); }
Result cuMemFree_v2(Pointer pointer) { free((void *)(uintptr_t)pointer); return SUCCESS; }
Result cuMemFreeAsync(Pointer pointer, Handle stream) { return cuMemFree_v2(pointer); }
Result cuMemAllocHost_v2(void **memory, size_t size) { *memory = malloc(size); return *memory ? SUCCESS : OUT_OF_MEMORY; }
Result cuMemFreeHost(void *memory) { free(memory); return SUCCESS; }
Result cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t size, Handle stream) {
    memcpy((void *)(uintptr_t)to, from, size);
    return SUCCESS;
}
Result cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t size, Handle stream) {
    memcpy(to, (const void *)(uintptr_t)from, size);
    return SUCCESS;
}
struct Copy2d {
    size_t from_x, from_y;
    unsigned from_kind;
    const void *from_host;
    Pointer from_device;
    Handle from_array;
    size_t from_pitch, to_x, to_y;
    unsigned to_kind;
    void *to_host;
    Pointer to_device;
    Handle to_array;
    size_t to_pitch, width, height;
};
Result cuMemcpy2DAsync_v2(const struct Copy2d *copy, Handle stream) {
    const char *from = copy->from_kind == 1 ? copy->from_host : (const char *)(uintptr_t)copy->from_device;
    char *to = copy->to_kind == 1 ? copy->to_host : (char *)(uintptr_t)copy->to_device;
    for (size_t row = 0; row < copy->height; row++)
        memcpy(to + row * copy->to_pitch, from + row * copy->from_pitch, copy->width);
    return SUCCESS;
}

// What the double of the compiler gives is the name of a library; of a kernel that is only compiled it is empty.
Result cuModuleLoadData(Handle *module, const void *image) {
    if (*(const char *)image == 0) return give(module);
    void *library = dlopen(image, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return NOT_FOUND;
    }
    *module = dlsym(library, "run_kernel");
    return *module == NULL ? NOT_FOUND : SUCCESS;
}
Result cuModuleGetFunction(Handle *function, Handle module, const char *name) {
    *function = module;
    return SUCCESS;
}
Result cuModuleUnload(Handle module) { return SUCCESS; }
Result cuFuncSetAttribute(Handle function, int attribute, int value) { return SUCCESS; }
Result cuLaunchKernel(Handle function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                      unsigned block_z, unsigned shared, Handle stream, void **parameters, void **extra) {
    if (function == &object) return SUCCESS;
    unsigned grid[] = {x, y, z}, block[] = {block_x, block_y, block_z};
    ((void (*)(void **, const unsigned *, const unsigned *))function)(parameters, grid, block);
    return SUCCESS;
}
