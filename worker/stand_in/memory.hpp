// The memory of the stand-in for CUDA. See `device.cpp`.
#pragma once
#include "streams.hpp"

#include <c10/core/CachingDeviceAllocator.h>

namespace stand_in {

// The device's allocator, as libtorch knows it.
c10::DeviceAllocator* memory();

}  // namespace stand_in
