//! Which SPDK this was built for, and which one is running.

use std::ffi::{CStr, c_int, c_void};
use std::slice;

use spdk_sys as sys;

/// The release whose headers the extension is built with, as "v26.01".
pub fn built_for() -> String {
    format!("v{}.{:02}", sys::SPDK_VERSION_MAJOR, sys::SPDK_VERSION_MINOR)
}

/// The release that runs, as "v26.01", if that can be found out: SPDK has no function that says it,
/// but its version is in what it prints when it starts ("SPDK v26.01 ...").
pub fn running() -> Option<String> {
    let mut found = None;
    // SAFETY: the callback gets the pointer to `found` back, during the call.
    unsafe { libc::dl_iterate_phdr(Some(search_object), (&raw mut found).cast()) };
    found
}

/// Looks through the read-only data of one loaded object. 1 ends the search.
unsafe extern "C" fn search_object(
    info: *mut libc::dl_phdr_info,
    _: libc::size_t,
    found: *mut c_void,
) -> c_int {
    // SAFETY: the info and its program headers are valid during the call; a PT_LOAD segment is
    // mapped, and one that is readable and not writable doesn't change.
    unsafe {
        let headers = slice::from_raw_parts((*info).dlpi_phdr, (*info).dlpi_phnum.into());
        let segments =
            headers.iter().filter(|header| header.p_type == libc::PT_LOAD).map(|header| {
                let start = (*info).dlpi_addr as usize + header.p_vaddr as usize;
                (start as *const u8, header.p_memsz as usize, header.p_flags)
            });
        let ours = built_for as fn() -> String as usize;
        if segments
            .clone()
            .any(|(start, len, _)| (start as usize..start as usize + len).contains(&ours))
        {
            return 0;
        }
        for (start, len, flags) in segments {
            if flags & libc::PF_R == 0 || flags & libc::PF_W != 0 {
                continue;
            }
            if let Some(version) = version_in(slice::from_raw_parts(start, len)) {
                *found.cast::<Option<String>>() = Some(version);
                return 1;
            }
        }
    }
    0
}

/// Compares byte by byte: a `memcmp` that is intercepted by the address sanitizer doesn't bear what is between
/// the globals of a target that is built with it.
fn version_in(bytes: &[u8]) -> Option<String> {
    let is_mark =
        |window: &[u8]| matches!(window, [b'S', b'P', b'D', b'K', b' ', b'v', b'0'..=b'9']);
    bytes.windows(b"SPDK v0".len()).enumerate().find_map(|(at, window)| {
        is_mark(window).then_some(())?;
        let text = CStr::from_bytes_until_nul(bytes.get(at..)?).ok()?.to_str().ok()?;
        text.split_whitespace().nth(1).map(str::to_owned)
    })
}
