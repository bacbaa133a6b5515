extern "C" __global__ void __launch_bounds__(256) squire_warned(float* out) {
  int unused = 1;
  out[threadIdx.x] *= 2;
}
