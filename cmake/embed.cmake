# Writes OUT, a C source with the bytes of FILES (names in FOLDER): cmake -DOUT=.. -DFOLDER=.. -DFILES="a;b" -P embed.cmake
#
# The program needs no folder of its own at run time, and what it serves is what it was built with. An ETag
# is the hash of the bytes, so that browsers notice another version and nothing else.
set(types_html "text/html; charset=utf-8")
set(types_css "text/css; charset=utf-8")
set(types_js "text/javascript; charset=utf-8")
set(types_svg "image/svg+xml")

set(arrays "")
set(rows "")
set(n 0)
foreach(name ${FILES})
    file(READ "${FOLDER}/${name}" bytes HEX)
    file(SHA256 "${FOLDER}/${name}" hash)
    string(SUBSTRING "${hash}" 0 20 hash)
    string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
    string(REGEX REPLACE "^.*\\." "" suffix "${name}")
    if(NOT DEFINED types_${suffix})
        message(FATAL_ERROR "${name}: no content type for .${suffix}")
    endif()
    string(APPEND arrays "static const unsigned char file_${n}[] = {${bytes}};\n")
    string(APPEND rows "    {\"${name}\", \"${types_${suffix}}\", \"\\\"${hash}\\\"\", file_${n}, sizeof file_${n}},\n")
    math(EXPR n "${n} + 1")
endforeach()
file(WRITE "${OUT}" "#include \"web/static_file.h\"\n\n${arrays}
const static_file static_files[] = {\n${rows}};
const size_t n_static_files = sizeof static_files / sizeof static_files[0];\n")
