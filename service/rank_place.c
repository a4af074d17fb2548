/* service/rank_place.c - see rank_place.h. */
#include "service/rank_place.h"

#include "base/threads.h"

#include <string.h>
#include <unistd.h>

enum { MASTER_PORT = 29500 /* torchrun's, if nobody names one */ };

static const char *const ways[] = {
    [DEV_COMM_AUTO] = "auto", [DEV_COMM_HOST] = "host", [DEV_COMM_NCCL] = "nccl", NULL};

#define R ranks_config
static const cfg_field fields[] = {
    CFG_NUM32(R, n_ranks, "ranks", 1, 64, "1",
              "ranks of this process: experts and KV shards are spread over them"),
    CFG_NUM32(R, timeout_s, "rank-timeout", 1, 3600, "6",
              "seconds of waiting after which a rank is lost, and the group with it"),
    CFG_NUM32(R, open_timeout_s, "rank-open-timeout", 1, 86400, "600",
              "seconds until all ranks of other processes have come"),
    CFG_PICK(R, collectives, "rank-collectives", ways, "auto",
             "cuda: between ranks' GPUs by nccl, through the host, or auto: nccl if each has a GPU "
             "of its own"),
};
#undef R

const cfg_table ranks_config_table = {"Ranks", fields, sizeof fields / sizeof fields[0]};

/* ---- the environment ------------------------------------------------------------------------------ */

/* NULL: not set, or empty. */
static const char *variable(char *const *environment, const char *name)
{
    const size_t n = strlen(name);
    for (; *environment != NULL; environment++) {
        if (strncmp(*environment, name, n) == 0 && (*environment)[n] == '=')
            return (*environment)[n + 1] != '\0' ? *environment + n + 1 : NULL;
    }
    return NULL;
}

/* How a launcher names things. */
typedef struct launcher {
    const char *rank, *n_ranks, *n_here, *host, *port; /* NULL: it has none */
    const char *transport;
} launcher;

static const launcher launchers[] = {
    {"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "tcp"},
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", NULL, NULL,
     "mpi"},
    {"LWS_WORKER_INDEX", "LWS_GROUP_SIZE", NULL, "LWS_LEADER_ADDRESS", "MASTER_PORT", "tcp"},
};
enum { N_LAUNCHERS = sizeof launchers / sizeof launchers[0] };

/* In [least, most]; `missing` if it is not set. */
typedef struct number_range {
    uint64_t least, most, missing;
} number_range;

static err_t read_number(char *const *environment, const char *name, const number_range *range,
                         uint64_t *out, err_info *info)
{
    const char *text = name != NULL ? variable(environment, name) : NULL;
    *out = range->missing;
    if (text == NULL) return ERR_OK;
    if (cfg_parse_u64(text, out) == ERR_OK && *out >= range->least && *out <= range->most)
        return ERR_OK;
    return err_set(info, ERR_BAD_CONFIG, "%s: \"%.40s\" is no number in [%llu, %llu]", name, text,
                   (unsigned long long)range->least, (unsigned long long)range->most);
}

/* torchrun's agent holds MASTER_PORT itself, and says so. */
static bool is_port_taken(char *const *environment)
{
    const char *text = variable(environment, "TORCHELASTIC_USE_AGENT_STORE");
    return text != NULL && strcmp(text, "True") == 0;
}

static err_t read_master(char *const *environment, const launcher *by, rank_place *out,
                         err_info *info)
{
    uint64_t port;
    if (by->host == NULL) return ERR_OK;
    const number_range range = {1, 65534, MASTER_PORT};
    TRY(read_number(environment, by->port, &range, &port, info));
    out->master_port = (uint16_t)(port + (is_port_taken(environment) ? 1 : 0));
    out->master_host = variable(environment, by->host);
    if (out->master_host != NULL) return ERR_OK;
    return err_set(info, ERR_BAD_CONFIG, "%s: is not set, and %s says %u ranks", by->host,
                   by->n_ranks, out->n_ranks);
}

/* One launcher's word; n_ranks is 1 if it has none. */
static err_t read_launcher(char *const *environment, const launcher *by, rank_place *out,
                           err_info *info)
{
    uint64_t n_ranks, rank, n_here;
    const number_range sizes = {1, COMM_RANKS_MAX, 1};
    TRY(read_number(environment, by->n_ranks, &sizes, &n_ranks, info));
    *out = (rank_place){.n_ranks = (uint32_t)n_ranks, .n_here = 1};
    if (n_ranks == 1) return ERR_OK;
    if (variable(environment, by->rank) == NULL)
        return err_set(info, ERR_BAD_CONFIG, "%s: is not set, and %s says %u ranks", by->rank,
                       by->n_ranks, out->n_ranks);
    const number_range ranks = {0, n_ranks - 1, 0}, here = {1, n_ranks, 1};
    TRY(read_number(environment, by->rank, &ranks, &rank, info));
    TRY(read_number(environment, by->n_here, &here, &n_here, info));
    out->rank = (uint32_t)rank;
    out->n_here = (uint32_t)n_here;
    out->transport = comm_find(by->transport);
    return read_master(environment, by, out, info);
}

err_t rank_place_find(const ranks_config *config, char *const *environment, rank_place *out,
                      err_info *info)
{
    const launcher *by = NULL;
    *out = (rank_place){.n_ranks = 1, .n_here = 1};
    for (int i = 0; i < N_LAUNCHERS && out->n_ranks == 1; i++) {
        by = &launchers[i];
        TRY(read_launcher(environment, by, out, info));
    }
    if (config->n_ranks == 1) return ERR_OK;
    if (out->n_ranks > 1)
        return err_set(info, ERR_BAD_CONFIG,
                       "ranks: %u in one process, and %s says this is one of %u processes",
                       config->n_ranks, by->n_ranks, out->n_ranks);
    *out = (rank_place){
        .transport = comm_find("local"), .n_ranks = config->n_ranks, .n_here = config->n_ranks};
    return ERR_OK;
}

/* A launcher may have bound this process to its share already. */
uint32_t rank_place_threads(const rank_place *place, uint32_t n_threads)
{
    const uint32_t n_free = threads_available();
    const long n_online = sysconf(_SC_NPROCESSORS_ONLN);
    if (n_threads > 0 || place->n_here == 1) return n_threads;
    const uint32_t n_all =
        strcmp(place->transport->name, "local") == 0 || n_online < 1 ? n_free : (uint32_t)n_online;
    const uint32_t share = n_all / place->n_here > 0 ? n_all / place->n_here : 1;
    return share < n_free ? share : n_free;
}

bool rank_place_is_mpi(const rank_place *place)
{
    return place->transport != NULL && place->transport == comm_find("mpi");
}
