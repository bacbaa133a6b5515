/* A libcuda that has no device behind it: device memory is host memory, kernels do nothing. What it claims and what it
 * lets fail comes from the environment:
 *   FAKE_VERSION, FAKE_INIT, FAKE_DEVICES, FAKE_CAPABILITY, FAKE_MEMORY: what the queries answer
 *   FAKE_FAIL: NAME=CODE, the call that fails
 *   FAKE_CALLS: a file that hears of every call in the stream's context, a line each */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *handle;
typedef unsigned long long address;

static size_t taken;
static handle current;

static long setting(const char *name, long otherwise) {
  const char *value = getenv(name);
  return value ? atol(value) : otherwise;
}

/* Hears of the call; the code that it is to fail with, or 0. */
static int called(const char *name, const char *details) {
  const char *path = getenv("FAKE_CALLS"), *fail = getenv("FAKE_FAIL");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (file) {
    fprintf(file, "%s%s\n", name, details);
    fclose(file);
  }
  size_t n = strlen(name);
  return fail && strncmp(fail, name, n) == 0 && fail[n] == '=' ? atoi(fail + n + 1) : 0;
}

#define CALLED(details)                                                                                                \
  do {                                                                                                                 \
    int code = called(__func__, details);                                                                              \
    if (code) return code;                                                                                             \
  } while (0)

int cuDriverGetVersion(int *version) { return *version = (int)setting("FAKE_VERSION", 13000), 0; }
int cuInit(unsigned flags) { return flags ? 1 : (int)setting("FAKE_INIT", 0); }
int cuGetErrorName(int code, const char **text) { return *text = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR", 0; }
int cuGetErrorString(int code, const char **text) { return *text = code == 2 ? "out of memory" : "words", 0; }
int cuDeviceGetCount(int *count) { return *count = (int)setting("FAKE_DEVICES", 1), 0; }
int cuDeviceGet(int *device, int index) { return *device = index, 0; }
int cuDeviceGetName(char *name, int len, int device) { return snprintf(name, (size_t)len, "Fake %d", device), 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = (size_t)setting("FAKE_MEMORY", 1 << 30), device < 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
  int capability = (int)setting("FAKE_CAPABILITY", 90);
  *value = which == 75 ? capability / 10 : which == 76 ? capability % 10 : which == 97 ? 232448 : 16;
  return device < 0;
}

int cuDevicePrimaryCtxRetain(handle *context, int device) {
  CALLED("");
  *context = &taken;
  return device < 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
  CALLED("");
  return device < 0;
}
int cuCtxGetCurrent(handle *context) { return *context = current, 0; }
int cuCtxSetCurrent(handle context) { return current = context, 0; }

int cuModuleLoadData(handle *module, const void *image) {
  CALLED("");
  *module = &current;
  return image == NULL || (size_t)image % 16 != 0;
}
int cuModuleUnload(handle module) {
  CALLED("");
  return module == NULL;
}
int cuModuleGetFunction(handle *function, handle module, const char *name) {
  CALLED("");
  *function = &called;
  return module == NULL ? 1 : strcmp(name, "known") == 0 ? 0 : 500;
}
int cuFuncLoad(handle function) { return function == NULL; }
int cuFuncGetParamInfo(handle function, size_t index, size_t *offset, size_t *size) {
  *offset = 0, *size = 16;
  return function == NULL || index != 0;
}
int cuFuncSetAttribute(handle function, int which, int value) {
  char details[64];
  snprintf(details, sizeof details, " %d %d", which, value);
  CALLED(details);
  return function == NULL;
}

struct attribute {
  int id;
  char pad[4];
  int value[16];
};
struct config {
  unsigned grid[3], block[3], shared;
  handle stream;
  struct attribute *attributes;
  unsigned n_attributes;
};

int cuLaunchKernelEx(const struct config *config, handle function, void **params, void **extra) {
  char details[256];
  const unsigned *g = config->grid, *b = config->block;
  int n = snprintf(details, sizeof details, " %u,%u,%u x %u,%u,%u shared %u args %d", g[0], g[1], g[2], b[0], b[1], b[2],
                   config->shared, *(int *)params[0]);
  for (unsigned i = 0; i < config->n_attributes; i++) {
    const struct attribute *a = &config->attributes[i];
    n += snprintf(details + n, sizeof details - (size_t)n, " attribute %d=%d", a->id, a->value[0]);
  }
  CALLED(details);
  return function == NULL || extra != NULL;
}

int cuMemGetInfo_v2(size_t *free, size_t *total) {
  *total = (size_t)setting("FAKE_MEMORY", 1 << 30);
  return *free = *total - taken, 0;
}
int cuMemAlloc_v2(address *at, size_t bytes) {
  char details[32];
  snprintf(details, sizeof details, " %zu", bytes);
  CALLED(details);
  if (taken + bytes > (size_t)setting("FAKE_MEMORY", 1 << 30)) return 2;
  size_t *block = aligned_alloc(256, 256 + bytes);
  taken += *block = bytes;
  return *at = (address)block + 256, 0;
}
int cuMemFree_v2(address at) {
  size_t *block = (size_t *)(at - 256);
  CALLED("");
  taken -= *block;
  free(block);
  return 0;
}
int cuMemHostAlloc(void **at, size_t bytes, unsigned flags) {
  CALLED("");
  return *at = aligned_alloc(64, (bytes + 63) / 64 * 64), flags != 0;
}
int cuMemFreeHost(void *at) {
  CALLED("");
  return free(at), 0;
}
int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, handle stream) {
  CALLED("");
  return memcpy((void *)to, from, bytes), stream == NULL;
}
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, handle stream) {
  CALLED("");
  return memcpy(to, (void *)from, bytes), stream == NULL;
}
int cuMemcpyDtoDAsync_v2(address to, address from, size_t bytes, handle stream) {
  CALLED("");
  return memcpy((void *)to, (void *)from, bytes), stream == NULL;
}
int cuMemsetD8Async(address at, unsigned char byte, size_t bytes, handle stream) {
  CALLED("");
  return memset((void *)at, byte, bytes), stream == NULL;
}

int cuStreamCreate(handle *stream, unsigned flags) {
  CALLED("");
  return *stream = &taken, flags != 1;
}
int cuStreamDestroy_v2(handle stream) {
  CALLED("");
  return stream == NULL;
}
int cuStreamSynchronize(handle stream) {
  CALLED("");
  return stream == NULL;
}
int cuStreamBeginCapture_v2(handle stream, int mode) {
  CALLED("");
  return stream == NULL || mode != 1;
}
int cuStreamEndCapture(handle stream, handle *graph) {
  CALLED("");
  return *graph = &taken, stream == NULL;
}
int cuThreadExchangeStreamCaptureMode(int *mode) {
  static int own = 0;
  int before = own;
  own = *mode, *mode = before;
  return 0;
}
int cuGraphInstantiateWithFlags(handle *ready, handle graph, unsigned long long flags) {
  CALLED("");
  return *ready = &current, graph == NULL || flags != 0;
}
int cuGraphDestroy(handle graph) {
  CALLED("");
  return graph == NULL;
}
int cuGraphLaunch(handle graph, handle stream) {
  CALLED("");
  return graph == NULL || stream == NULL;
}
int cuGraphExecDestroy(handle graph) {
  CALLED("");
  return graph == NULL;
}
int cuEventCreate(handle *event, unsigned flags) {
  CALLED("");
  return *event = &current, flags != 0;
}
int cuEventRecord(handle event, handle stream) {
  CALLED("");
  return event == NULL || stream == NULL;
}
int cuEventQuery(handle event) {
  CALLED("");
  return event == NULL;
}
int cuEventSynchronize(handle event) {
  CALLED("");
  return event == NULL;
}
int cuEventElapsedTime_v2(float *ms, handle from, handle to) {
  CALLED("");
  return *ms = 1.5f, from == NULL || to == NULL;
}
int cuEventDestroy_v2(handle event) {
  CALLED("");
  return event == NULL;
}
