//! A blob's metadata as it is on the device: the first of its pages, which is all of it for most
//! (`struct spdk_blob_md_page`, `lib/blob/blobstore.h`).

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const PAGE: usize = 4096;
/// Where a page's descriptors are.
const DESCRIPTORS: std::ops::Range<usize> = 16..4088;
const CRC: std::ops::Range<usize> = 4092..4096;

const XATTR: u8 = 2;
const FLAGS: u8 = 3;
const INTERNAL_XATTR: u8 = 4;

/// `SPDK_BLOB_INTERNAL_XATTR` of `invalid_flags`.
pub const INTERNAL_XATTR_FLAG: u64 = 1 << 1;

/// What the root page of a blob's metadata says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// `invalid_flags`, `data_ro_flags` and `md_ro_flags`.
    pub flags: [u64; 3],
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub internal_xattrs: BTreeMap<String, Vec<u8>>,
    /// The other descriptors, which say where the clusters are: type and content.
    pub clusters: Vec<(u8, Vec<u8>)>,
    /// The page that follows, `u32::MAX` if none.
    pub next: u32,
}

/// The root page of the lvol with this UUID, in the file of its lvstore. The target must not run.
pub fn read(file: &Path, uuid: &str) -> Metadata {
    find(file, uuid).1
}

/// Gives an lvol one more xattr. The target must not run.
pub fn add_xattr(file: &Path, uuid: &str, name: &str, value: &[u8]) {
    let (offset, _, mut page) = find(file, uuid);
    let mut content = Vec::new();
    content.extend(u16_of(name.len()).to_le_bytes());
    content.extend(u16_of(value.len()).to_le_bytes());
    content.extend(name.as_bytes());
    content.extend(value);
    let mut descriptor = vec![XATTR];
    descriptor.extend(u32::from(u16_of(content.len())).to_le_bytes());
    descriptor.extend(content);
    let end =
        DESCRIPTORS.start + descriptors(&page).map(|(_, content)| 5 + content.len()).sum::<usize>();
    assert!(end + descriptor.len() <= DESCRIPTORS.end, "the page has no room for {name}");
    page[end..end + descriptor.len()].copy_from_slice(&descriptor);
    write(file, offset, page);
}

/// Gives an xattr of an lvol another name, of the same length. The target must not run.
pub fn rename_xattr(file: &Path, uuid: &str, name: &str, other: &str) {
    assert_eq!(name.len(), other.len(), "the new name of the xattr must fit the place of the old");
    let (offset, _, mut page) = find(file, uuid);
    let mut place = DESCRIPTORS.start;
    let mut found = None;
    for (kind, content) in descriptors(&page) {
        if kind == XATTR && content[4..].starts_with(name.as_bytes()) {
            // Behind the descriptor's head, and the lengths of the name and the value.
            found = Some(place + 5 + 4);
        }
        place += 5 + content.len();
    }
    let place = found.unwrap_or_else(|| panic!("the lvol has no xattr {name}"));
    page[place..place + other.len()].copy_from_slice(other.as_bytes());
    write(file, offset, page);
}

/// Spoils the checksum, until what is returned is called. The target may run, if it doesn't write the page.
pub fn spoil<'a>(file: &'a Path, uuid: &str) -> impl FnOnce() + use<'a> {
    let (offset, _, page) = find(file, uuid);
    let wrong = page[CRC].iter().map(|byte| !byte).collect::<Vec<_>>();
    File::options()
        .write(true)
        .open(file)
        .and_then(|file| file.write_all_at(&wrong, offset + CRC.start as u64))
        .expect("the lvstore's file can be written");
    move || write(file, offset, page)
}

/// Writes a page with the right checksum.
fn write(file: &Path, offset: u64, mut page: Vec<u8>) {
    let crc = crc32c(&page[..CRC.start]);
    page[CRC].copy_from_slice(&crc.to_le_bytes());
    File::options()
        .write(true)
        .open(file)
        .and_then(|file| file.write_all_at(&page, offset))
        .expect("the lvstore's file can be written");
}

fn u16_of(length: usize) -> u16 {
    u16::try_from(length).expect("an xattr is short")
}

/// Finds the page by the lvol's UUID, which is one of its xattrs.
fn find(file: &Path, uuid: &str) -> (u64, Metadata, Vec<u8>) {
    let file = File::open(file).expect("the lvstore's file can be read");
    let mut page = vec![0; PAGE];
    file.read_exact_at(&mut page, 0).expect("an lvstore has a super block");
    assert_eq!(&page[..8], b"SPDKBLOB", "the first bytes of an lvstore");
    // `md_start` and `md_len` of `struct spdk_bs_super_block`, in pages.
    let (start, count) = (u32_at(&page, 48), u32_at(&page, 52));
    let mut found = None;
    for number in u64::from(start)..u64::from(start) + u64::from(count) {
        let offset = number * PAGE as u64;
        file.read_exact_at(&mut page, offset).expect("the metadata of an lvstore can be read");
        let is_root = u32_at(&page, 8) == 0;
        if is_root
            && page.iter().any(|&byte| byte != 0)
            && crc32c(&page[..CRC.start]) == u32_at(&page, CRC.start)
        {
            let metadata = parse(&page);
            if metadata.xattrs.get("uuid").is_some_and(|value| value.starts_with(uuid.as_bytes())) {
                assert!(found.is_none(), "two blobs of the UUID {uuid}");
                found = Some((offset, metadata, page.clone()));
            }
        }
    }
    found.unwrap_or_else(|| panic!("no blob of the UUID {uuid} on the device"))
}

fn parse(page: &[u8]) -> Metadata {
    let mut metadata = Metadata {
        flags: [0; 3],
        xattrs: BTreeMap::new(),
        internal_xattrs: BTreeMap::new(),
        clusters: Vec::new(),
        next: u32_at(page, 4088),
    };
    for (kind, content) in descriptors(page) {
        match kind {
            FLAGS => {
                for (flags, bytes) in metadata.flags.iter_mut().zip(content.chunks_exact(8)) {
                    *flags = u64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
                }
            }
            XATTR | INTERNAL_XATTR => {
                let name_end = 4 + usize::from(u16::from_le_bytes([content[0], content[1]]));
                let name = String::from_utf8_lossy(&content[4..name_end]).into_owned();
                let xattrs = if kind == XATTR {
                    &mut metadata.xattrs
                } else {
                    &mut metadata.internal_xattrs
                };
                xattrs.insert(name, content[name_end..].to_vec());
            }
            _ => metadata.clusters.push((kind, content.to_vec())),
        }
    }
    metadata
}

/// The type and the content of each descriptor on a page.
fn descriptors(page: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = &page[DESCRIPTORS];
    std::iter::from_fn(move || {
        // An empty one ends the list.
        if rest.len() < 5 || u32_at(rest, 1) == 0 {
            return None;
        }
        let (head, tail) = rest.split_at(5);
        let (content, tail) = tail.split_at(u32_at(head, 1) as usize);
        rest = tail;
        Some((head[0], content))
    })
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

/// CRC-32C, bit by bit: there are few pages.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 }
        })
    })
}
