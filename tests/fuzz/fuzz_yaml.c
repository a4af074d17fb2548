/* The reader of configuration files under any bytes: never a crash, and a message with every refusal. */
#include "base/check.h"
#include "service/server_config.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    serve_config config = {0};
    const cfg_binding binding = {&serve_config_table, &config};
    const config_target target = {&binding, 1, NULL};
    err_info info = {0};
    if (cfg_defaults(&binding, 1) == ERR_OK) {
        const err_t err = config_yaml_parse(&target, "f.yaml", (const char *)data, bytes, &info);
        assert(err == ERR_OK || info.code == err);
        assert(err == ERR_OK || strncmp(info.message, "f.yaml", 6) == 0);
    }
    cfg_deinit(&binding, 1);
    return 0;
}
