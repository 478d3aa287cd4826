// Loops compiled for several instruction sets, of which the machine's best runs.
#pragma once

// A wheel is built for the oldest processors: without this its loops have a quarter of the width.
// Sanitizers are not yet there when the choice is made, while the library loads.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SOAP_FAST_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SOAP_FAST_CLONES
#endif

// What a cloned function calls must become part of it, or it is compiled for the oldest alone.
#define SOAP_FAST_INLINE inline __attribute__((always_inline))
