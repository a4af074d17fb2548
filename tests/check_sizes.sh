#!/bin/sh
# Fails over the limits of size: 70 lines a function (120 in kernels and in a layer's forward), 600 a
# file, 150 a header. Prints the longest ones either way.
set -u
cd "${1:-$(dirname "$0")/..}" || exit 1
list=$(mktemp)
files=$(find base kernels kvcache model web service bench docker tests tools \
    \( -name '*.c' -o -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' -o -name '*.py' -o -name '*.sh' \))

# shellcheck disable=SC2086 # paths hold no spaces
ctags -x --_xformat='%F %n %e %N %K' --map-C++=+.cu --map-C++=+.cuh --languages=C,C++,Python --kinds-C=f --kinds-C++=f \
    --kinds-Python=fm --fields=+ne $files |
    awk '{ n = $3 - $2 + 1; limit = ($1 ~ /^kernels\// || $1 ~ /^model\/(forward|layer_)/) ? 120 : 70
           print n, $1 ":" $2, $4
           if (n > limit) { print "function over " limit " lines: " $1 ":" $2 " " $4 " (" n ")" > "/dev/stderr"; bad = 1 } }
         END { exit bad }' >"$list"
status=$?
echo "longest functions:"
sort -rn "$list" | head -5
rm -f "$list"

echo "longest files:"
# shellcheck disable=SC2086
wc -l $files | grep -v ' total$' | sort -rn | head -5
# shellcheck disable=SC2086
wc -l $files | awk '$2 != "total" { limit = ($2 ~ /\.(h|cuh)$/) ? 150 : 600
    if ($1 > limit) { print "file over " limit " lines: " $2 " (" $1 ")" > "/dev/stderr"; bad = 1 } }
    END { exit bad }' || status=1
exit $status
