# PIKV_HAS_CUDA: whether .cu files are compiled by nvcc. The runtime is linked statically, so that the binary
# starts where there is no driver. PIKV_CUDA=AUTO is for the suite: it proves that the code compiles, for one
# architecture, since each one costs as much again; ON compiles what runs: machine code for sm_80 and sm_90,
# and PTX for what comes after.
set(PIKV_HAS_CUDA OFF)
if(PIKV_FUZZ AND PIKV_CUDA STREQUAL "AUTO") # nvcc's host compiler is not clang, whose flags fuzzers need
    set(PIKV_CUDA OFF)
endif()
find_program(PIKV_NVCC nvcc PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
if(PIKV_CUDA STREQUAL "ON" AND NOT PIKV_NVCC)
    message(FATAL_ERROR "PIKV_CUDA is ON, and there is no nvcc here")
endif()
if(PIKV_NVCC AND (PIKV_CUDA STREQUAL "ON" OR PIKV_CUDA STREQUAL "AUTO"))
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND PIKV_CUDA STREQUAL "ON")
        set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
    elseif(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
        set(CMAKE_CUDA_ARCHITECTURES 90-real)
    endif()
    set(CMAKE_CUDA_COMPILER ${PIKV_NVCC})
    set(CMAKE_CUDA_STANDARD 17)
    enable_language(CUDA)
    foreach(build RELEASE RELWITHDEBINFO) # assertions stay on
        string(REPLACE "-DNDEBUG" "" CMAKE_CUDA_FLAGS_${build} "${CMAKE_CUDA_FLAGS_${build}}")
    endforeach()
    set(PIKV_HAS_CUDA ON)
endif()
