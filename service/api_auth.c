/* service/api_auth.c - API keys.
 *
 * Keys are hashed when the server starts and compared as hashes, every key every time: how long a
 * refusal takes says nothing about how near a guess was, nor about the number of keys before the right
 * one. */
#include "service/api.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { KEY_BYTES_MAX = 4096, KEYS_MAX = 1024 };

static err_t add_key(api_keys *keys, const char *text, size_t n_bytes, err_info *info)
{
    if (keys->n_keys == KEYS_MAX) {
        return err_set(info, ERR_BAD_CONFIG, "more than %d API keys", KEYS_MAX);
    }
    uint8_t(*hashes)[HASH_SECRET_BYTES] =
        reallocarray(keys->hashes, keys->n_keys + 1, sizeof *hashes);
    if (hashes == NULL) return err_set(info, ERR_NO_MEMORY, "no memory for API keys");
    keys->hashes = hashes;
    hash_secret(text, n_bytes, hashes[keys->n_keys++]);
    return ERR_OK;
}

static err_t add_line(api_keys *keys, char *line, err_info *info)
{
    char *end = line + strcspn(line, "\r\n");
    while (end > line && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    while (line < end && (*line == ' ' || *line == '\t'))
        line++;
    if (line == end || *line == '#') return ERR_OK;
    return add_key(keys, line, (size_t)(end - line), info);
}

static err_t add_file(api_keys *keys, const char *path, err_info *info)
{
    char line[KEY_BYTES_MAX];
    const size_t n_before = keys->n_keys;
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return err_set(info, ERR_IO, "api-key-file: %s: %s", path, strerror(errno));
    }
    err_t err = ERR_OK;
    while (err == ERR_OK && fgets(line, sizeof line, file) != NULL) {
        const bool is_whole = strchr(line, '\n') != NULL || feof(file);
        err = is_whole
                  ? add_line(keys, line, info)
                  : err_set(info, ERR_BAD_CONFIG, "api-key-file: a line of %s is too long", path);
    }
    if (err == ERR_OK && ferror(file))
        err = err_set(info, ERR_IO, "api-key-file: cannot read %s", path);
    fclose(file);
    /* An empty file must not mean that no key is needed. */
    if (err == ERR_OK && keys->n_keys == n_before) {
        return err_set(info, ERR_BAD_CONFIG, "api-key-file: %s holds no key", path);
    }
    return err;
}

err_t api_keys_open(const serve_config *config, api_keys *out, err_info *info)
{
    *out = (api_keys){0};
    err_t err = ERR_OK;
    for (size_t i = 0; err == ERR_OK && i < config->api_keys.n_items; i++) {
        const char *key = config->api_keys.items[i];
        err = *key == '\0' ? err_set(info, ERR_BAD_CONFIG, "api-key: a key is empty")
                           : add_key(out, key, strlen(key), info);
    }
    if (err == ERR_OK && config->api_key_file != NULL)
        err = add_file(out, config->api_key_file, info);
    if (err != ERR_OK) api_keys_deinit(out);
    return err;
}

void api_keys_deinit(api_keys *keys)
{
    free(keys->hashes);
    *keys = (api_keys){0};
}

static bool is_known(const api_keys *keys, const char *text, size_t n_bytes)
{
    uint8_t hash[HASH_SECRET_BYTES];
    unsigned n_equal = 0;
    hash_secret(text, n_bytes, hash);
    for (size_t i = 0; i < keys->n_keys; i++)
        n_equal += hash_secret_equal(hash, keys->hashes[i]);
    return n_equal > 0;
}

/* What follows the scheme `Bearer`, or NULL. */
static const char *bearer_token(const char *authorization)
{
    static const char scheme[] = "bearer";
    const size_t n = sizeof scheme - 1;
    if (strncasecmp(authorization, scheme, n) != 0 || authorization[n] != ' ') return NULL;
    authorization += n;
    return authorization + strspn(authorization, " ");
}

bool api_keys_accept(const api_keys *keys, const char *authorization, const char *x_api_key)
{
    if (keys->n_keys == 0) return true;
    const char *token = authorization != NULL ? bearer_token(authorization) : NULL;
    bool is_accepted = token != NULL && is_known(keys, token, strcspn(token, " "));
    if (x_api_key != NULL) is_accepted |= is_known(keys, x_api_key, strlen(x_api_key));
    return is_accepted;
}
