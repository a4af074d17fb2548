/* service/rank_group.c - see rank_group.h. */
#include "service/rank_group.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "model/model_fingerprint.h"
#include "service/cli.h"
#include "service/follower.h"
#include "service/signal_watch.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Weights may come from a slow disk on one rank and lie in memory on another. */
enum { LOAD_TIMEOUT_MS = 3600 * 1000 };

typedef struct local_rank {
    const server_settings *settings;
    comm *comm;
    pthread_t thread;
} local_rank;

struct rank_group {
    local_rank *others; /* [n_started] */
    uint32_t n_started;
};

/* ---- the parts of a rank -------------------------------------------------------------------------- */

/* The ranks of a machine, which launchers number one after the other, take its GPUs in turn. */
static err_t open_device(const server_settings *settings, uint32_t rank, rank_share *share,
                         err_info *info)
{
    const device_config *device = &settings->serve.device;
    const device_user user = {.rank = rank % settings->place.n_here,
                              .n_here = settings->place.n_here,
                              .n_threads = rank_place_threads(&settings->place, device->n_threads)};
    return device_open(device, &user, &share->d, info);
}

err_t rank_share_load(const server_settings *settings, rank_share *share, err_info *info)
{
    const model_options options = {.load = (model_load)settings->serve.load_format,
                                   .n_step_tokens_max = settings->engine.n_batched_tokens_max,
                                   .n_positions_max = settings->engine.n_context_max,
                                   .comm = share->comm,
                                   .experts = &settings->experts};
    return model_open(share->d, settings->serve.model_dir, &options, &share->m, info);
}

kv_limits rank_share_limits(const server_settings *settings, const rank_share *share)
{
    return (kv_limits){.n_seqs_max = settings->engine.n_seqs_max,
                       .n_step_tokens_max = settings->engine.n_batched_tokens_max,
                       .n_seq_tokens_max = model_get_config(share->m)->n_positions};
}

err_t rank_share_open_cache(const server_settings *settings, rank_share *share, err_info *info)
{
    const kv_limits limits = rank_share_limits(settings, share);
    kv_config config = settings->kv;
    config.comm = share->comm;
    config.n_ranks_here = settings->place.n_here;
    return kv_cache_open(share->d, &config, model_get_kv_shape(share->m), &limits, &share->cache,
                         info);
}

err_t rank_share_meet(const server_settings *settings, rank_share *share, err_info *info)
{
    if (share->comm == NULL) return ERR_OK;
    TRY(comm_barrier(share->comm, info));
    comm_set_timeout_ms(share->comm, settings->ranks.timeout_s * 1000);
    return ERR_OK;
}

static void share_close(rank_share *share)
{
    kv_cache_close(share->cache);
    model_close(share->m);
    comm_close(share->comm);
    dev_close(share->d);
    *share = (rank_share){0};
}

/* Once a rank has its device and the others. */
static err_t join_devices(const server_settings *settings, const rank_share *share, err_info *info)
{
    const dev_comm_options options = {.way = (dev_comm_way)settings->ranks.collectives,
                                      .timeout_ms = LOAD_TIMEOUT_MS};
    if (share->comm == NULL) return ERR_OK;
    return dev_comm_join(share->d, share->comm, &options, info);
}

/* ---- following ------------------------------------------------------------------------------------ */

static err_t load_and_follow(const server_settings *settings, rank_share *share, err_info *info)
{
    TRY(join_devices(settings, share, info));
    TRY(rank_share_load(settings, share, info));
    model_touch_weights(share->m);
    TRY(rank_share_open_cache(settings, share, info));
    TRY(rank_share_meet(settings, share, info));
    const rank_parts parts = {.cache = share->cache,
                              .m = share->m,
                              .comm = share->comm,
                              .limits = rank_share_limits(settings, share),
                              .page_tokens = settings->kv.page_tokens};
    return follower_run(&parts, info);
}

/* Of a rank with its comm. What ended it, if that was not rank 0. */
static err_t live(const server_settings *settings, rank_share *share, err_info *info)
{
    err_info own = {0};
    const err_t err = load_and_follow(settings, share, &own);
    if (err == ERR_OK) return ERR_OK;
    const char *message = own.code != ERR_OK ? own.message : err_sentence(err);
    if (comm_status(share->comm, NULL) == ERR_OK) comm_abort(share->comm, message);
    return err_set(info, err, "%s", message);
}

/* ---- ranks of one process ------------------------------------------------------------------------- */

static void *local_main(void *ctx)
{
    local_rank *rank = ctx;
    err_info info = {0};
    rank_share share = {.comm = rank->comm};
    err_t err = open_device(rank->settings, comm_rank(rank->comm), &share, &info);
    if (err != ERR_OK) comm_abort(share.comm, info.message);
    if (err == ERR_OK) err = live(rank->settings, &share, &info);
    share_close(&share); /* rank 0 says why, if there is something to say */
    return NULL;
}

static err_t start_local(const server_settings *settings, rank_group *group, rank_share *share,
                         err_info *info)
{
    const uint32_t n = settings->place.n_ranks;
    comm **comms = calloc(n, sizeof(comm *));
    group->others = calloc(n, sizeof *group->others);
    err_t err = comms != NULL && group->others != NULL ? ERR_OK : ERR_NO_MEMORY;
    if (err == ERR_OK) err = comm_open_local(n, LOAD_TIMEOUT_MS, comms, info);
    for (uint32_t r = 1; r < n && err == ERR_OK; r++) {
        local_rank *other = &group->others[group->n_started];
        *other = (local_rank){.settings = settings, .comm = comms[r]};
        if (pthread_create(&other->thread, NULL, local_main, other) != 0) {
            err = err_set(info, ERR_SYSTEM, "ranks: no thread for rank %u", r);
            comm_abort(comms[0], info != NULL ? info->message : err_sentence(err));
            for (; r < n; r++)
                comm_close(comms[r]);
            break;
        }
        group->n_started++;
    }
    if (comms != NULL) share->comm = comms[0];
    free(comms);
    return err == ERR_OK ? ERR_OK : err_set(info, err, "ranks: out of memory");
}

/* ---- ranks of several processes ------------------------------------------------------------------- */

/* Of program, settings and model. What may differ between machines is left out: who listens where, how many
 * threads compute, what is logged. */
static err_t fingerprint(const server_settings *settings, const dev *d, uint64_t *out,
                         err_info *info)
{
    static const hash_key key = {{0}};
    const serve_config *serve = &settings->serve;
    uint64_t model_mark;
    char *text = NULL;
    size_t text_bytes = 0;
    TRY(model_fingerprint(serve->model_dir, (model_load)serve->load_format, &model_mark, info));
    FILE *stream = open_memstream(&text, &text_bytes);
    if (stream == NULL) return err_set(info, ERR_NO_MEMORY, "ranks: out of memory");
    const cfg_binding bindings[] = {{&engine_config_table, (void *)(uintptr_t)&settings->engine},
                                    {&kv_config_table, (void *)(uintptr_t)&settings->kv},
                                    {&experts_config_table, (void *)(uintptr_t)&settings->experts},
                                    {&ranks_config_table, (void *)(uintptr_t)&settings->ranks}};
    cfg_print_yaml(bindings, sizeof bindings / sizeof bindings[0], stream);
    fprintf(stream, "%s %s %llx\n", PIKV_VERSION, d->ops->name, (unsigned long long)model_mark);
    const bool is_broken = ferror(stream) != 0;
    if (fclose(stream) != 0 || is_broken) {
        free(text);
        return err_set(info, ERR_NO_MEMORY, "ranks: out of memory");
    }
    *out = hash_bytes(&key, text, text_bytes).lo;
    free(text);
    return ERR_OK;
}

static err_t join_others(const server_settings *settings, rank_share *share, err_info *info)
{
    const rank_place *place = &settings->place;
    comm_config config = {.rank = place->rank,
                          .n_ranks = place->n_ranks,
                          .timeout_ms = LOAD_TIMEOUT_MS,
                          .open_timeout_ms = settings->ranks.open_timeout_s * 1000,
                          .peer_timeout_ms = settings->ranks.timeout_s * 1000,
                          .master_host = place->master_host,
                          .master_port = place->master_port};
    TRY(fingerprint(settings, share->d, &config.fingerprint, info));
    return comm_open(place->transport, &config, &share->comm, info);
}

static bool is_local(const rank_place *place)
{
    return strcmp(place->transport->name, "local") == 0;
}

static err_t come_together(const server_settings *settings, rank_group *group, rank_share *share,
                           err_info *info)
{
    const rank_place *place = &settings->place;
    const uint64_t start_ns = clock_mono_ns();
    if (place->n_ranks == 1) return ERR_OK;
    TRY(is_local(place) ? start_local(settings, group, share, info)
                        : join_others(settings, share, info));
    log_info("ranks", "together rank=%u ranks=%u transport=%s seconds=%.3f", place->rank,
             place->n_ranks, place->transport->name, clock_seconds_since(start_ns));
    signal_watch_set_met();
    return ERR_OK;
}

err_t rank_group_open(const server_settings *settings, rank_share *share, rank_group **out,
                      err_info *info)
{
    *share = (rank_share){0};
    *out = calloc(1, sizeof **out);
    if (*out == NULL) return err_set(info, ERR_NO_MEMORY, "ranks: out of memory");
    TRY(open_device(settings, settings->place.rank, share, info));
    TRY(come_together(settings, *out, share, info));
    return join_devices(settings, share, info);
}

void rank_group_close(rank_group *group, rank_share *share, const char *reason)
{
    if (reason != NULL && share->comm != NULL && comm_status(share->comm, NULL) == ERR_OK)
        comm_abort(share->comm, reason);
    share_close(share);
    if (group == NULL) return;
    for (uint32_t i = 0; i < group->n_started; i++)
        pthread_join(group->others[i].thread, NULL);
    free(group->others);
    free(group);
}

/* ---- a process that follows ----------------------------------------------------------------------- */

static err_t follow(const server_settings *settings, signal_watch *watch, err_info *info)
{
    rank_share share = {0};
    if (hash_init() != ERR_OK) return err_set(info, ERR_SYSTEM, "no source of random numbers");
    err_t err = open_device(settings, settings->place.rank, &share, info);
    if (err == ERR_OK) err = come_together(settings, NULL, &share, info);
    if (err == ERR_OK) {
        signal_watch_set_busy(watch);
        err = live(settings, &share, info);
    }
    share_close(&share);
    return err;
}

int rank_follow(const server_settings *settings)
{
    err_info info = {0};
    signal_watch watch;
    const signal_watch_options signals = {.name = "ranks",
                                          .on_stop = "rank 0 decides when this one ends",
                                          .is_under_mpi = rank_place_is_mpi(&settings->place)};
    err_t err = signal_watch_open(&watch, &signals, &info);
    if (err == ERR_OK) {
        err = follow(settings, &watch, &info);
        signal_watch_close(&watch);
    }
    if (err == ERR_OK) {
        log_info("ranks", "left rank=%u", settings->place.rank);
        return 0;
    }
    log_error("ranks", "rank %u ends: %s", settings->place.rank,
              info.code != ERR_OK ? info.message : err_sentence(err));
    return err == ERR_BAD_CONFIG ? CLI_EXIT_USAGE : CLI_EXIT_FAILED;
}
