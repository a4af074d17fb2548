/* tests/model/fail_new.cc - C++ allocations of the whole process, SentencePiece's included. */
#include "tests/model/fail_alloc.h"

#include <cstdlib>
#include <new>

extern "C" void *__real_malloc(size_t bytes);

void *operator new(std::size_t bytes)
{
    void *const block = fail_alloc_now_new() ? nullptr : __real_malloc(bytes > 0 ? bytes : 1);
    if (block == nullptr) throw std::bad_alloc();
    return block;
}

void *operator new[](std::size_t bytes)
{
    return operator new(bytes);
}

void operator delete(void *block) noexcept
{
    std::free(block);
}

void operator delete[](void *block) noexcept
{
    std::free(block);
}

void operator delete(void *block, std::size_t) noexcept
{
    std::free(block);
}

void operator delete[](void *block, std::size_t) noexcept
{
    std::free(block);
}
