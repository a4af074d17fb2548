# What was compiled before, in this clone or in another, is taken from ccache where that is installed: the suite
# builds the program under three presets and with two compilers. Paths below the sources count as relative, or
# no two clones would have an object in common.
find_program(PIKV_CCACHE ccache)
if(PIKV_CCACHE)
    foreach(lang C CXX CUDA)
        set(CMAKE_${lang}_COMPILER_LAUNCHER
            ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${PIKV_CCACHE})
    endforeach()
endif()
