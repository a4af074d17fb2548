/* base/hash.h - keyed hashing and secret comparison, over libsodium.
 *
 * 128-bit SipHash-2-4 (Aumasson and Bernstein, 2012) for prefix-cache keys: an outsider who does not
 * know the key cannot aim for collisions. SHA-256 and a constant-time compare for API keys. */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct hash_key {
    uint8_t bytes[16];
} hash_key;

typedef struct hash128 {
    uint64_t lo, hi;
} hash128;

enum { HASH_SECRET_BYTES = 32 };

err_t hash_init(void) MUST_CHECK;    /* once, before the others; ERR_SYSTEM without entropy */
void hash_key_random(hash_key *out); /* from the system's generator */
void hash_random_bytes(void *out, size_t bytes);
hash128 hash_bytes(const hash_key *key, const void *data, size_t bytes);
void hash_secret(const char *text, size_t bytes, uint8_t out[HASH_SECRET_BYTES]); /* SHA-256 */
bool hash_secret_equal(const uint8_t a[HASH_SECRET_BYTES], const uint8_t b[HASH_SECRET_BYTES]);

static inline bool hash128_equal(hash128 a, hash128 b)
{
    return a.lo == b.lo && a.hi == b.hi;
}

#endif
