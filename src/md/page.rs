//! One page of a blob's metadata, as it is on the device.

use std::fmt;
use std::mem::offset_of;
use std::ops::Range;
use std::os::raw::{c_int, c_void};
use std::ptr::NonNull;

use spdk_sys as sys;

use crate::base::task::{status, status_callback};
use crate::chain::blob::{BlobId, OpenBlob};
use crate::io::channel::Channel;

/// Bytes of a page's content. A page may take more room: `md_page_size` of the blobstore.
const LEN: usize = size_of::<sys::spdk_blob_md_page>();
/// Where its descriptors are.
const DESCRIPTORS: Range<usize> =
    offset_of!(sys::spdk_blob_md_page, descriptors)..offset_of!(sys::spdk_blob_md_page, next);
/// A descriptor's head: its type, and the length of what follows.
const HEAD: usize = size_of::<sys::spdk_blob_md_descriptor>();
/// `SPDK_INVALID_MD_PAGE`
const NO_PAGE: u32 = u32::MAX;

/// What is wrong with a page, or why it could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// The device's errno, or that of an allocation.
    Failed(c_int),
    /// It is not the page that memory says it is.
    Wrong(String),
}

impl Unreadable {
    /// The errno that it comes to.
    pub fn errno(&self) -> c_int {
        match self {
            Unreadable::Failed(errno) => *errno,
            Unreadable::Wrong(_) => libc::EILSEQ,
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Failed(errno) => write!(f, "{}", errno::Errno(*errno)),
            Unreadable::Wrong(what) => f.write_str(what),
        }
    }
}

/// What was taken out of a page.
pub struct Erased {
    start: usize,
    bytes: Vec<u8>,
    /// Where the flags are, and what they were.
    old_flags: Option<(usize, u64)>,
}

/// A page in memory that the device can read into, and write from.
///
/// # Invariants
///
/// `buffer` is `len` bytes, at least [`LEN`], from `spdk_dma_zmalloc`, which belong to the value.
pub struct MdPage {
    buffer: NonNull<u8>,
    len: usize,
    number: u32,
}

impl MdPage {
    /// The page that a blob's metadata begins with.
    pub async fn read_root(blob: &OpenBlob) -> Result<MdPage, Unreadable> {
        // SAFETY: the blob, and so its blobstore, is in memory (`OpenBlob`).
        let len = unsafe { sys::spdk_bs_get_page_size((*blob.as_ptr()).bs) } as usize;
        // The lower half of a blob's id is its first page (`bs_blobid_to_page`).
        MdPage::read(blob, blob.id() as u32, 0, len.max(LEN)).await
    }

    /// The page that follows, which is the `sequence_num`th.
    pub async fn read_next(
        &self,
        blob: &OpenBlob,
        sequence_num: u32,
    ) -> Result<Option<MdPage>, Unreadable> {
        let next = self.field_u32(offset_of!(sys::spdk_blob_md_page, next));
        if next == NO_PAGE {
            return Ok(None);
        }
        // SAFETY: the blob, and so its blobstore, is in memory (`OpenBlob`).
        let md_len = unsafe { (*(*blob.as_ptr()).bs).md_len };
        if next >= md_len || sequence_num >= md_len {
            return Err(Unreadable::Wrong(format!(
                "page {}: the next would be {next}",
                self.number
            )));
        }
        MdPage::read(blob, next, sequence_num, LEN).await.map(Some)
    }

    /// SPDK writes a root page with the room that it takes, and the others without
    /// (`blob_persist_write_page_root`, `blob_persist_write_page_chain`).
    async fn read(
        blob: &OpenBlob,
        number: u32,
        sequence_num: u32,
        len: usize,
    ) -> Result<MdPage, Unreadable> {
        // SAFETY: the memory is the value's.
        let buffer = unsafe { sys::spdk_dma_zmalloc(len, LEN, std::ptr::null_mut()) };
        let buffer = NonNull::new(buffer.cast()).ok_or(Unreadable::Failed(libc::ENOMEM))?;
        let page = MdPage { buffer, len, number };
        page.transfer(blob, Direction::Read).await.map_err(Unreadable::Failed)?;
        page.check(blob.id(), sequence_num)?;
        Ok(page)
    }

    /// Writes it to where it was read from.
    pub async fn write(&self, blob: &OpenBlob) -> Result<(), c_int> {
        self.transfer(blob, Direction::Write).await
    }

    async fn transfer(&self, blob: &OpenBlob, direction: Direction) -> Result<(), c_int> {
        unsafe extern "C" fn done(_: *mut sys::spdk_io_channel, ctx: *mut c_void, rc: c_int) {
            // SAFETY: the context is from `status`, and the device completes an I/O once.
            unsafe { status_callback(ctx, rc) }
        }
        // SAFETY: the blob, and so its blobstore, the device and its channel, is in memory
        // (`OpenBlob`). The buffer and the arguments are there until the I/O is done.
        unsafe {
            let bs = (*blob.as_ptr()).bs;
            let dev = (*bs).dev;
            let function = match direction {
                Direction::Read => (*dev).read,
                Direction::Write => (*dev).write,
            };
            let function = function.ok_or(libc::ENOTSUP)?;
            let channel = Channel::of_metadata(bs).dev_channel();
            let mut args =
                sys::spdk_bs_dev_cb_args { cb_fn: Some(done), channel, ..Default::default() };
            let args = &raw mut args;
            let blocklen = u64::from((*dev).blocklen);
            // As `bs_md_page_to_lba`.
            let room = sys::spdk_bs_get_page_size(bs) / blocklen;
            let lba = ((*bs).md_start + u64::from(self.number)) * room;
            let blocks = self.len as u64 / blocklen;
            let rc = status(|ctx| {
                (*args).cb_arg = ctx;
                function(dev, channel, self.buffer.as_ptr().cast(), lba, blocks as u32, args);
            })
            .await;
            if rc == 0 { Ok(()) } else { Err(rc.abs()) }
        }
    }

    fn content(&self) -> &[u8] {
        // SAFETY: the memory is the value's, and as long (invariant).
        unsafe { std::slice::from_raw_parts(self.buffer.as_ptr(), self.len) }
    }

    fn content_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.as_ptr(), self.len) }
    }

    fn bytes_at<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.content().get(at..)?.first_chunk().copied()
    }

    fn field_u32(&self, at: usize) -> u32 {
        self.bytes_at(at).map(u32::from_ne_bytes).unwrap_or_default()
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        if let Some(field) = self.content_mut().get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    }

    /// `blob_md_page_calc_crc`
    fn crc(&self) -> u32 {
        let len = LEN - size_of::<u32>();
        // SAFETY: the memory is the value's, and longer.
        unsafe { sys::spdk_crc32c_update(self.buffer.as_ptr().cast(), len, u32::MAX) ^ u32::MAX }
    }

    fn check(&self, id: BlobId, sequence_num: u32) -> Result<(), Unreadable> {
        let page = self.number;
        let wrong = |what: String| Err(Unreadable::Wrong(format!("page {page}: {what}")));
        let (crc, right) = (self.field_u32(offset_of!(sys::spdk_blob_md_page, crc)), self.crc());
        if crc != right {
            return wrong(format!("its crc is {crc:#x} and should be {right:#x}"));
        }
        let id_at = offset_of!(sys::spdk_blob_md_page, id);
        let owner = self.bytes_at(id_at).map(BlobId::from_ne_bytes).unwrap_or_default();
        if owner != id {
            return wrong(format!("it is blob {owner:#x}'s and should be blob {id:#x}'s"));
        }
        let number = self.field_u32(offset_of!(sys::spdk_blob_md_page, sequence_num));
        if number != sequence_num {
            return wrong(format!("its sequence number is {number} and should be {sequence_num}"));
        }
        Ok(())
    }

    /// Its descriptors, each with its head (`blob_parse_page`).
    fn descriptors(&self) -> impl Iterator<Item = (u8, Range<usize>)> {
        let mut at = DESCRIPTORS.start;
        std::iter::from_fn(move || {
            let [kind, length @ ..] = self.bytes_at::<HEAD>(at)?;
            let end = at + HEAD + u32::from_ne_bytes(length) as usize;
            let is_padding = u32::from(kind) == sys::SPDK_MD_DESCRIPTOR_TYPE_PADDING;
            if end > DESCRIPTORS.end || (is_padding && end == at + HEAD) {
                return None;
            }
            let descriptor = at..end;
            at = end;
            Some((kind, descriptor))
        })
    }

    fn find(&self, kind: u32) -> impl Iterator<Item = Range<usize>> {
        self.descriptors().filter(move |&(this, _)| u32::from(this) == kind).map(|(_, at)| at)
    }

    /// The descriptor of the internal xattr `SNAP`, and the blob that it names.
    pub fn find_parent(&self) -> Option<(Range<usize>, BlobId)> {
        self.find(sys::SPDK_MD_DESCRIPTOR_TYPE_XATTR_INTERNAL).find_map(|at| {
            let (_, name) = sys::BLOB_SNAPSHOT.split_last()?;
            let xattr = self.content().get(at.clone())?.get(HEAD..)?;
            let xattr = xattr.strip_prefix(&u16::try_from(name.len()).ok()?.to_ne_bytes())?;
            // The length of the value.
            let value = xattr.get(size_of::<u16>()..)?.strip_prefix(name)?;
            Some((at, BlobId::from_ne_bytes(value.try_into().ok()?)))
        })
    }

    /// Whether it has one internal xattr, and no other.
    pub fn has_one_internal_xattr(&self) -> bool {
        self.find(sys::SPDK_MD_DESCRIPTOR_TYPE_XATTR_INTERNAL).count() == 1
    }

    /// Takes a descriptor out, and clears flags of `invalid_flags` if this is the page that has them.
    pub fn erase(&mut self, descriptor: Range<usize>, flags: u64) -> Erased {
        let old_flags = self.find(sys::SPDK_MD_DESCRIPTOR_TYPE_FLAGS).next().and_then(|at| {
            let at = at.start + offset_of!(sys::spdk_blob_md_descriptor_flags, invalid_flags);
            Some((at, u64::from_ne_bytes(self.bytes_at(at)?)))
        });
        if let Some((at, old)) = old_flags {
            self.set(at, &(old & !flags).to_ne_bytes());
        }
        let (start, len) = (descriptor.start, descriptor.len());
        let bytes = self.content().get(descriptor).map(<[u8]>::to_vec).unwrap_or_default();
        // SPDK stops at the first empty one, so the gap is closed.
        if let Some(rest) = self.content_mut().get_mut(start..DESCRIPTORS.end) {
            rest.copy_within(len.., 0);
            let kept = rest.len() - len;
            rest.split_at_mut(kept).1.fill(0);
        }
        self.seal();
        Erased { start, bytes, old_flags }
    }

    /// Takes back what was erased last.
    pub fn restore(&mut self, erased: &Erased) {
        let (start, len) = (erased.start, erased.bytes.len());
        if let Some(rest) = self.content_mut().get_mut(start..DESCRIPTORS.end) {
            let kept = rest.len() - len;
            rest.copy_within(..kept, len);
        }
        self.set(start, &erased.bytes);
        if let Some((at, flags)) = erased.old_flags {
            self.set(at, &flags.to_ne_bytes());
        }
        self.seal();
    }

    /// Gives it the crc of what it is now.
    fn seal(&mut self) {
        let crc = self.crc();
        self.set(offset_of!(sys::spdk_blob_md_page, crc), &crc.to_ne_bytes());
    }
}

impl Drop for MdPage {
    fn drop(&mut self) {
        // SAFETY: the memory is the value's.
        unsafe { sys::spdk_dma_free(self.buffer.as_ptr().cast()) }
    }
}

enum Direction {
    Read,
    Write,
}
