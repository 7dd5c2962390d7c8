//! Entropy: always the machine's own, so that two copies of a service never share it.

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_read_entropy(buf: *mut u8, len: usize, _flags: u32) -> isize {
    if buf.is_null() {
        return -(super::EINVAL as isize);
    }
    let len = len.min(isize::MAX as usize);
    // SAFETY: the caller passes `len` writable bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buf, len) };
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&ferry_abi::host_random().to_ne_bytes()[..chunk.len()]);
    }
    len as isize
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_secure_rand32(value: *mut u32) -> i32 {
    if value.is_null() {
        return -super::EINVAL;
    }
    // SAFETY: not null, so the caller's place for the result.
    unsafe { value.write(ferry_abi::host_random() as u32) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_secure_rand64(value: *mut u64) -> i32 {
    if value.is_null() {
        return -super::EINVAL;
    }
    // SAFETY: as above.
    unsafe { value.write(ferry_abi::host_random()) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn sys_rand() -> u32 {
    (ferry_abi::host_random() >> 33) as u32
}

/// The machine's source takes no seed.
#[unsafe(no_mangle)]
extern "C" fn sys_srand(_seed: u32) {}
