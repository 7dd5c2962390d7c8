//! An image that a user pushes.

use host_tools::qemu::image::ImageInfo;

pub fn run(file: &[u8]) {
    if let Ok(image) = ImageInfo::read(file) {
        assert!(image.min_memory_mib() > 0, "an image that needs no memory");
    }
}
