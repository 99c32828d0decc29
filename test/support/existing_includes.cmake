# SPDX-License-Identifier: Apache-2.0
# For -DCMAKE_PROJECT_INCLUDE: the CMake files of the ROS wheels name folders of the machine that built them
# (/opt/python/...). CMake refuses those; they are dropped.

function(drop_folders_that_do_not_exist)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(folders ${target} INTERFACE_INCLUDE_DIRECTORIES)
    set(found "")
    foreach(folder IN LISTS folders)
      if(folder MATCHES "^\\$<" OR EXISTS "${folder}")
        list(APPEND found "${folder}")
      endif()
    endforeach()
    if(folders)
      set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${found}")
    endif()
  endforeach()
endfunction()

cmake_language(DEFER CALL drop_folders_that_do_not_exist)
