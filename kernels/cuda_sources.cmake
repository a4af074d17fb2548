set(PIKV_CUDA_SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/cuda_attention.cu
    ${CMAKE_CURRENT_LIST_DIR}/cuda_choose.cu
    ${CMAKE_CURRENT_LIST_DIR}/cuda_elementwise.cu
    ${CMAKE_CURRENT_LIST_DIR}/cuda_matmul.cu
    ${CMAKE_CURRENT_LIST_DIR}/cuda_moe.cu
    ${CMAKE_CURRENT_LIST_DIR}/cuda_rank.cu
    ${CMAKE_CURRENT_LIST_DIR}/cuda_sample.cu)
