#!/bin/sh
# Fails on an include that points upward and on a third-party header outside its one home.
# The order of the layers is that of docs/architecture.md.
set -u
cd "${1:-$(dirname "$0")/..}" || exit 1
status=0

# deny FOLDER LAYER...: no file of FOLDER includes a header of one of these layers.
deny() {
    folder=$1
    shift
    for layer in "$@"; do
        if grep -rnE "#[[:space:]]*include \"$layer/" "$folder" --include='*.[ch]' --include='*.cc' --include='*.cu' --include='*.cuh'; then
            echo "^ $folder must not include $layer" >&2
            status=1
        fi
    done
}
deny base kernels kvcache model web service
deny kernels kvcache model web service
deny kvcache model web service
deny model web service
deny web kernels kvcache model service

# home HEADER-PATTERN FILE-PATTERN: only matching files include the header.
home() {
    found=$(grep -rlE "#[[:space:]]*include <$1" base kernels kvcache model web service | grep -vE "^($2)$")
    if [ -n "$found" ]; then
        echo "<$1 is included outside $2:" $found >&2
        status=1
    fi
}
home 'microhttpd' 'web/http_mhd[a-z_]*\.c'
home 'jansson' 'service/[a-z_]*_json\.[ch]|service/eval/[a-z_]*_json\.c|service/jinja/jinja\.h|service/jinja/[a-z_]*_json\.c|service/tools/[a-z_]*_json\.c'
home 'cjson/' 'model/[a-z_]*_json\.c'
home 'sentencepiece' 'model/tokenizer_spm\.cc'
home 'pcre2' 'model/regex_pcre2\.c'
home 'utf8proc' 'model/unicode_utf8proc\.c'
home 'sodium' 'base/hash\.c'
home 'yaml' 'service/config_yaml\.c'
home 'cuda' 'kernels/[a-z_]*cuda[a-z_]*\.(c|cu|cuh|h)'
home 'nccl' 'kernels/comm_nccl\.c'
home 'mpi' 'kernels/comm_mpi\.c'
exit $status
