/* model/unicode_since.c - see unicode_since.h. */
#include "model/unicode_since.h"

const unicode_since unicode_since_2021[] = {{0x1e4d0, 0x1e4ea, "Lo"}};
