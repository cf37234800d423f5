// Symbols that newer compilers use and manylinux_2_28 (glibc 2.28, libstdc++ of GCC 8) does not
// have. They are linked into every library of a wheel and visible to that library only. Linking
// libstdc++ statically would be simpler, but exceptions pass from here through libtorch, and two
// copies of the library would count them separately.
#include <exception>
#include <new>
#include <sstream>

// glibc 2.32. Zero makes reference counts atomic, which is needed anyway, as libtorch has threads.
extern "C" char __libc_single_threaded;
char __libc_single_threaded = 0;

// The default constructors, GLIBCXX_3.4.26.
template std::ostringstream::basic_ostringstream();
template std::stringstream::basic_stringstream();

namespace std {

// GLIBCXX_3.4.29.
void __throw_bad_array_new_length() { throw bad_array_new_length(); }

}  // namespace std

// CXXABI_1.3.13: std::exception_ptr's copy constructor and destructor have become inline functions
// that call these two. The complete functions are in every libstdc++.
extern "C" {
void copy_exception(void* to,
                    const void* from) __asm__("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void destroy_exception(void* pointer) __asm__("_ZNSt15__exception_ptr13exception_ptrD1Ev");

void add_reference(const void* pointer) __asm__(
    "_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
void add_reference(const void* pointer) {
  void* another;
  copy_exception(&another, pointer);
}

void release(void** pointer) __asm__("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");
void release(void** pointer) {
  destroy_exception(pointer);
  *pointer = nullptr;
}
}
