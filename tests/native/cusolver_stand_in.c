/* Stands in for cuSOLVER in cusolver_lookup; without XSYEV_BATCHED for one that is too old. */
int cusolverDnCreate(void** handle) {
  *handle = handle;
  return 42;
}
int cusolverDnSetStream(void) { return 0; }
int cusolverDnCreateParams(void) { return 0; }
#ifdef XSYEV_BATCHED
int cusolverDnXsyevBatched_bufferSize(void) { return 0; }
int cusolverDnXsyevBatched(void) { return 0; }
#endif
