// Included before every file of a wheel: selects old versions of symbols that have newer ones.
//
// manylinux_2_28 means glibc 2.28 and the libstdc++ of GCC 8. The old versions behave the same:
// glibc 2.34 moved the POSIX functions into libc.so.6 (older systems have them in libpthread and
// libdl, which Python has loaded), and exp and pow of 2.29 no longer call a hook for errors.
#pragma once

#if defined(__x86_64__) && !defined(__CUDA_ARCH__)
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
__asm__(".symver exp, exp@GLIBC_2.2.5");
__asm__(".symver pow, pow@GLIBC_2.2.5");
__asm__(".symver pthread_mutex_trylock, pthread_mutex_trylock@GLIBC_2.2.5");
__asm__(".symver pthread_once, pthread_once@GLIBC_2.2.5");
// std::condition_variable::wait(std::unique_lock<std::mutex>&)
__asm__(
    ".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE, "
    "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");
// std::stringbuf::str() of C++20 has overloads for const and rvalue objects; that of C++11 copies.
__asm__(
    ".symver _ZNKRSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv, "
    "_ZNKSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv@GLIBCXX_3.4.21");
__asm__(
    ".symver _ZNOSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv, "
    "_ZNKSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv@GLIBCXX_3.4.21");
#endif
