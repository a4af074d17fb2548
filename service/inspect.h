/* service/inspect.h - what a model's folder holds, for somebody who has just downloaded it.
 *
 * Every part is looked at by itself: a folder with config.json alone, or of a family that this build does not know,
 * still tells what else is there. */
#ifndef SERVICE_INSPECT_H
#define SERVICE_INSPECT_H

#include "base/threads.h"
#include "kvcache/kv_config.h"

#include <stdbool.h>
#include <stdio.h>

typedef struct inspect_request {
    const char *dir;
    const kv_config *kv; /* of the memory that serving needs */
    uint32_t n_context;  /* tokens of a sequence; 0: the model's */
    uint32_t n_seqs, n_step_tokens;
    thread_pool *check; /* reads all tensors; NULL: they are not read */
    bool is_json;
} inspect_request;

/* Writes the report to `out`: one JSON object, or the same for people, one "key  value" a line. A part that is missing or not
 * supported says so where it would stand, and the first such is also the error: `*info` has it in one line and the
 * report is whole nevertheless. ERR_BAD_MODEL also if a value is NaN or Inf; ERR_NO_MEMORY: there is no report. */
err_t inspect_model(const inspect_request *request, FILE *out, err_info *info) MUST_CHECK;

#endif
