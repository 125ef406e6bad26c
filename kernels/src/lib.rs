#![no_std]
#![doc = "Kernels."]
