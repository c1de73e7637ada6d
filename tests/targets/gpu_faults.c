/* A fault injector in the place of libcuda, or with -DHIP of libamdhip64: it checks what it is given, counts it,
 * computes nothing, and fails where it is told to. Memory of the GPU is memory of the host, so copies are copies and
 * logits are what they were: zero.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int32_t status;
enum { OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID = 1, ILLEGAL_ADDRESS = 700 };

#ifdef HIP
#define cuInit hipInit
#define cuDeviceGetCount hipGetDeviceCount
#define cuDeviceGet hipDeviceGet
#define cuDeviceGetName hipDeviceGetName
#define cuGetErrorString hipDrvGetErrorString
#define cuStreamCreate hipStreamCreateWithFlags
#define cuStreamDestroy_v2 hipStreamDestroy
#define cuStreamSynchronize hipStreamSynchronize
#define cuMemAlloc_v2 hipMalloc
#define cuMemFree_v2 hipFree
#define cuMemFreeHost hipHostFree
#define cuMemsetD8Async hipMemsetD8Async
#define cuMemcpyHtoDAsync_v2 hipMemcpyHtoDAsync
#define cuMemcpyDtoHAsync_v2 hipMemcpyDtoHAsync
#define cuMemcpyDtoDAsync_v2 hipMemcpyDtoDAsync
#define cuModuleLoadData hipModuleLoadData
#define cuModuleUnload hipModuleUnload
#define cuModuleGetFunction hipModuleGetFunction
#define cuLaunchKernel hipModuleLaunchKernel
#define cuStreamBeginCapture_v2 hipStreamBeginCapture
#define cuStreamEndCapture hipStreamEndCapture
#define cuGraphInstantiateWithFlags hipGraphInstantiateWithFlags
#define cuGraphLaunch hipGraphLaunch
#define cuGraphDestroy hipGraphDestroy
#define cuGraphExecDestroy hipGraphExecDestroy
#endif

/* What tests set and read. */
int32_t fault_architecture = 90;     /* of the GPU that there is */
int32_t fault_devices = 1;
int32_t fault_init = 0;              /* what cuInit answers */
int32_t fault_graph = 0;             /* what running a graph answers, from now on until the context is reset */
int32_t fault_launch = 0;            /* the same of a launch outside of a graph */
int64_t fault_memory = 1ll << 40;    /* bytes that can be had */
int64_t seen_launches, seen_graphs, seen_resets, seen_bad, seen_allocated;

static int capturing, live_functions;
#ifndef HIP
static int64_t left_over;
#endif

#define EXPECT(condition) do { if (!(condition)) { seen_bad++; return INVALID; } } while (0)

status cuInit(uint32_t flags) { EXPECT(flags == 0); return fault_init; }
status cuDeviceGetCount(int *count) { *count = fault_devices; return 0; }
status cuDeviceGet(int *device, int number) { EXPECT(number == 0); *device = 0; return 0; }
status cuDeviceGetName(char *name, int size, int device) { (void)device; strncpy(name, "Fault Injector", size); return 0; }
status cuGetErrorString(status error, const char **text) { (void)error; *text = "injected"; return 0; }
#ifdef HIP
/* ROCm 6 and 7 put the architecture's name here in what describes a device (hipDeviceProp_tR0600). */
status hipGetDevicePropertiesR0600(char *properties, int device) {
    EXPECT(device == 0);
    strcpy(properties + 1160, fault_architecture == 90 ? "gfx942:sramecc+:xnack-" : "gfx1100");
    return 0;
}
status hipDeviceReset(void) { seen_resets++; fault_graph = fault_launch = 0; return 0; }
status hipHostMalloc(void **address, size_t size, uint32_t flags) { EXPECT(flags == 0); *address = calloc(1, size); return 0; }
#else
status cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    EXPECT(attribute == 75 || attribute == 76);
    *value = attribute == 75 ? fault_architecture / 10 : fault_architecture % 10;
    return 0;
}
status cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = &left_over; return 0; }
status cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return 0; }
status cuDevicePrimaryCtxReset_v2(int device) { (void)device; seen_resets++; fault_graph = fault_launch = 0; return 0; }
status cuCtxSetCurrent(void *context) { EXPECT(context == &left_over); return 0; }
status cuMemAllocHost_v2(void **address, size_t size) { *address = calloc(1, size); return 0; }
#endif
status cuStreamCreate(void **stream, uint32_t flags) { EXPECT(flags == 1); *stream = malloc(1); return 0; }
status cuStreamDestroy_v2(void *stream) { free(stream); return 0; }
status cuStreamSynchronize(void *stream) { EXPECT(stream); return 0; }
status cuMemAlloc_v2(void **address, size_t size) {
    EXPECT(size > 0);
    if (seen_allocated + (int64_t)size > fault_memory) return OUT_OF_MEMORY;
    size_t *block = malloc(size + 256);
    if (!block) return OUT_OF_MEMORY;
    *block = size;
    seen_allocated += size;
    *address = (char *)block + 256;
    return 0;
}
status cuMemFree_v2(void *address) {
    size_t *block = (size_t *)((char *)address - 256);
    seen_allocated -= *block;
    free(block);
    return 0;
}
status cuMemFreeHost(void *address) { free(address); return 0; }
status cuMemsetD8Async(void *to, unsigned char value, size_t size, void *stream) {
    EXPECT(stream && !capturing);
    memset(to, value, size);
    return 0;
}
status cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *stream) {
    EXPECT(stream && size > 0);
    if (!capturing) memcpy(to, from, size);
    return 0;
}
status cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size, void *stream) {
    EXPECT(stream && size > 0);
    if (!capturing) memcpy(to, from, size);
    return 0;
}
status cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t size, void *stream) {
    EXPECT(stream && size > 0);
    if (!capturing) memcpy(to, from, size);
    return 0;
}
status cuModuleLoadData(void **module, const char *image) {
    EXPECT(!memcmp(image, "\177ELF", 4));
    *module = malloc(1);
    return 0;
}
status cuModuleUnload(void *module) { free(module); return 0; }
status cuModuleGetFunction(void **function, void *module, const char *name) {
    EXPECT(module && *name);
    live_functions++;
    *function = module;
    return 0;
}
status cuFuncSetAttribute(void *function, int attribute, int value) {
    EXPECT(function && attribute == 8 && value > 48 << 10);
    return 0;
}
status cuLaunchKernel(void *function, uint32_t x, uint32_t y, uint32_t z, uint32_t threads, uint32_t one, uint32_t same,
                      uint32_t shared, void *stream, void **arguments, void **extra) {
    EXPECT(function && x && y && z && one == 1 && same == 1 && stream && arguments && arguments[0] && !extra);
    EXPECT(threads >= 32 && threads <= 1024 && shared <= 227 << 10 && y < 65536 && z < 65536);
    seen_launches++;
    return capturing ? 0 : fault_launch;
}
status cuStreamBeginCapture_v2(void *stream, int mode) { EXPECT(stream && mode == 2 && !capturing); capturing = 1; return 0; }
status cuStreamEndCapture(void *stream, void **graph) {
    EXPECT(stream && capturing);
    capturing = 0;
    *graph = malloc(1);
    return 0;
}
status cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    EXPECT(graph && flags == 0);
    *executable = malloc(1);
    return 0;
}
status cuGraphLaunch(void *executable, void *stream) { EXPECT(executable && stream); seen_graphs++; return fault_graph; }
status cuGraphDestroy(void *graph) { free(graph); return 0; }
status cuGraphExecDestroy(void *executable) { free(executable); return 0; }
