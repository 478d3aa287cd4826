#include "common.h"

#include <dlfcn.h>

#include <string>

namespace soap_fast {

// torch's own macros for this are not the same in all versions: the headers of 2.11 have no
// STABLE_TORCH_ERROR_CODE_CHECK, with those of 2.13 it drops torch's words, and with those of 2.14
// it prints a backtrace for failures that a second try mends. The words themselves can be asked for
// from 2.13 on; before, torch prints them to standard error.
void throw_failure(const char* name) {
  using Words = const char* (*)();
  static const auto words =
      reinterpret_cast<Words>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  const char* said = words ? words() : nullptr;
  throw std::runtime_error(std::string(name) + ": " +
                           (said && *said ? said : "failed; torch has printed why"));
}

}  // namespace soap_fast
