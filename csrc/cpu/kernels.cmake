# The CPU kernels, without torch. The build of the package includes this file, and so does that of
# the tests for other processors.
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)

add_library(mfk_options INTERFACE)
get_filename_component(csrc "${CMAKE_CURRENT_LIST_DIR}" DIRECTORY)
get_filename_component(root "${csrc}" DIRECTORY)
target_include_directories(mfk_options INTERFACE "${csrc}")
target_compile_options(
  mfk_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wno-psabi
                        -ffp-contract=off -fno-math-errno -fno-trapping-math>)
# Error messages name files relative to the project.
target_compile_options(mfk_options
                       INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fmacro-prefix-map=${root}/=>)
if(MFK_SANITIZE)
  target_compile_options(mfk_options INTERFACE -fsanitize=${MFK_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(mfk_options INTERFACE -fsanitize=${MFK_SANITIZE})
endif()

find_package(Threads REQUIRED)
add_library(mfk_cpu STATIC ${csrc}/cpu/common/instruction_set.cpp ${csrc}/cpu/common/parallel.cpp)
target_link_libraries(mfk_cpu PUBLIC mfk_options Threads::Threads)

set(isas baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND isas ${MFK_ISAS})
  set(flags_avx2 -march=x86-64-v3)
  set(flags_avx512 -march=x86-64-v4 -mprefer-vector-width=512)
  foreach(isa IN LISTS MFK_ISAS)
    string(TOUPPER ${isa} upper)
    target_compile_definitions(mfk_cpu PUBLIC MFK_HAS_${upper})
  endforeach()
endif()

# Every operation is a folder of csrc/cpu: operator.cpp (the operators on tensors) calls plan.cpp
# (splits the work into tasks), which calls kernel.cpp (one task). The latter is compiled once for
# each instruction set and defines one object, MFK_KERNEL; instruction_set() chooses one at run
# time.
set(operations assignment conv3x3 focal_dice group_norm mask_logits mask_loss matching_cost sample_points
               segmentation window_attention)
foreach(operation IN LISTS operations)
  add_library(mfk_${operation} STATIC ${csrc}/cpu/${operation}/plan.cpp)
  target_link_libraries(mfk_${operation} PUBLIC mfk_cpu)
  foreach(isa IN LISTS isas)
    set(kernel mfk_${operation}_${isa})
    add_library(${kernel} OBJECT ${csrc}/cpu/${operation}/kernel.cpp)
    target_link_libraries(${kernel} PRIVATE mfk_options)
    target_compile_options(${kernel} PRIVATE ${flags_${isa}})
    target_compile_definitions(${kernel} PRIVATE MFK_KERNEL=${operation}_${isa})
    target_sources(mfk_${operation} PRIVATE $<TARGET_OBJECTS:${kernel}>)
  endforeach()
endforeach()
