/* base/hash.c - see hash.h. The only file that knows libsodium. */
#include "base/hash.h"

#include "base/check.h"

#include <sodium.h>

static_assert(sizeof(hash_key) == crypto_shorthash_siphashx24_KEYBYTES, "SipHash key");
static_assert(sizeof(hash128) == crypto_shorthash_siphashx24_BYTES, "SipHash value");
static_assert(HASH_SECRET_BYTES == crypto_hash_sha256_BYTES, "SHA-256 value");

err_t hash_init(void)
{
    return sodium_init() < 0 ? ERR_SYSTEM : ERR_OK;
}

void hash_random_bytes(void *out, size_t bytes)
{
    randombytes_buf(out, bytes);
}

void hash_key_random(hash_key *out)
{
    hash_random_bytes(out->bytes, sizeof out->bytes);
}

/* Little endian on every machine: a key written to a file means the same everywhere. */
static uint64_t load_u64(const uint8_t *bytes)
{
    uint64_t x = 0;
    for (int i = 7; i >= 0; i--)
        x = x << 8 | bytes[i];
    return x;
}

hash128 hash_bytes(const hash_key *key, const void *data, size_t bytes)
{
    uint8_t value[crypto_shorthash_siphashx24_BYTES];
    crypto_shorthash_siphashx24(value, data, bytes, key->bytes);
    return (hash128){.lo = load_u64(value), .hi = load_u64(value + 8)};
}

void hash_secret(const char *text, size_t bytes, uint8_t out[HASH_SECRET_BYTES])
{
    crypto_hash_sha256(out, (const unsigned char *)text, bytes);
}

bool hash_secret_equal(const uint8_t a[HASH_SECRET_BYTES], const uint8_t b[HASH_SECRET_BYTES])
{
    return sodium_memcmp(a, b, HASH_SECRET_BYTES) == 0;
}
