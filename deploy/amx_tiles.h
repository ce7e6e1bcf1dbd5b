// Included before every C++ file of llama.cpp on processors with AMX.
//
// GCC 12.2, like all before its bug 114098 was mended, takes `_tile_loadconfig` to read 8 of its 64 bytes and drops what
// was written into the others as dead: llama.cpp's first product of quantised weights then ends with SIGSEGV or SIGILL.
#pragma once
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(config)))
#endif
