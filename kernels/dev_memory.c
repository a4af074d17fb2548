/* kernels/dev_memory.c - the memory of a device: the host's, unless its table says otherwise. */
#include "kernels/dev.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN_BYTES = 64 };

static err_t alloc_host(size_t bytes, void **out, err_info *info)
{
    size_t rounded;
    err_t err = size_add(bytes > 0 ? bytes : 1, ALIGN_BYTES - 1, &rounded);
    if (err == ERR_OK) *out = aligned_alloc(ALIGN_BYTES, rounded / ALIGN_BYTES * ALIGN_BYTES);
    if (*out == NULL) return err_set(info, ERR_NO_MEMORY, "no memory for %zu bytes", bytes);
    memset(*out, 0, bytes);
    return ERR_OK;
}

err_t dev_alloc(dev *d, size_t bytes, void **out, err_info *info)
{
    *out = NULL;
    return d->memory != NULL ? d->memory->alloc(d, bytes, out, info) : alloc_host(bytes, out, info);
}

void dev_free(dev *d, void *data)
{
    if (d->memory == NULL)
        free(data);
    else if (data != NULL)
        d->memory->free(d, data);
}

size_t dev_room(dev *d)
{
    return d->memory != NULL ? d->memory->room(d) : SIZE_MAX;
}

static void copy_host(void *to, const void *from, size_t bytes)
{
    if (to != from) memcpy(to, from, bytes);
}

void dev_upload(dev *d, void *to, const void *from, size_t bytes)
{
    if (d->memory != NULL)
        d->memory->upload(d, to, from, bytes);
    else
        copy_host(to, from, bytes);
}

void dev_download(dev *d, void *to, const void *from, size_t bytes)
{
    if (d->memory != NULL)
        d->memory->download(d, to, from, bytes);
    else
        copy_host(to, from, bytes);
}

void dev_zero(dev *d, void *data, size_t bytes)
{
    if (d->memory != NULL)
        d->memory->zero(d, data, bytes);
    else
        memset(data, 0, bytes);
}

void dev_begin_graph(dev *d, uint64_t key)
{
    if (d->memory != NULL && d->memory->begin_graph != NULL) d->memory->begin_graph(d, key);
}

void dev_end_graph(dev *d)
{
    if (d->memory != NULL && d->memory->end_graph != NULL) d->memory->end_graph(d);
}

bool dev_is_replaying(dev *d)
{
    return d->memory != NULL && d->memory->is_replaying != NULL && d->memory->is_replaying(d);
}

bool dev_find_stream(dev *d, dev_stream *out)
{
    return d->memory != NULL && d->memory->find_stream != NULL && d->memory->find_stream(d, out);
}

err_t dev_status(dev *d, err_info *info)
{
    return d->memory != NULL ? d->memory->status(d, info) : ERR_OK;
}
