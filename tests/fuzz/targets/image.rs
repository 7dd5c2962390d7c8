//! An image that a user pushes.
#![no_main]

use host_tools::qemu::image::ImageInfo;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    if let Ok(image) = ImageInfo::read(file) {
        assert!(image.min_memory_mib() > 0, "an image that needs no memory");
    }
});
