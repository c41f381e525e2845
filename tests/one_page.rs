//! What a detach does to the device: it changes one metadata page, in place, and flushes it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod store;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use spdk_lvol_detach::internals::blob::BlobId;
use spdk_lvol_detach::internals::memory_dev::Image;
use spdk_sys as sys;
use store::hooked_dev::{self, Hook};
use store::scenarios::{CHAIN, Name, Op, State, THREE_PAGES, TWO_PAGES, World, prepare};
use store::{Layout, MD_PAGE_LEN, image, run, start};

type Names = BTreeMap<Name, BlobId>;

/// The same as a detach, but by SPDK: of a parent that has no data there is nothing to copy.
///
/// ```text
/// snap1 <- snap2 <- vol      snap1 is empty
/// ```
const EMPTY_PARENT: &[Op] = &[
    Op::Create("other", 3),
    Op::Create("vol", 6),
    Op::Snapshot("vol", "snap1"),
    Op::Write("vol", 0, 0x11),
    Op::Write("vol", 3, 0x11),
];
const SNAP2: &[Op] = &[Op::Snapshot("vol", "snap2"), Op::Write("vol", 1, 0x22)];
/// An xattr that leaves no room in the root page, neither for the parent's name nor for the beginning of
/// what comes after it.
const LONG: usize = 4029;
const IN_THE_SECOND: &[Op] = &[Op::SetXattr("vol", "a", LONG)];
const SNAP2_IN_THE_SECOND: &[Op] =
    &[Op::SnapshotWithXattr("vol", "snap2", LONG), Op::Write("vol", 1, 0x22)];
/// Any metadata write of SPDK's: the superblock says since that the store is in use.
const IN_USE: Op = Op::SetXattr("other", "in use", 20);

const RLE: Layout = Layout { extent_table: false, ..Layout::DEFAULT };

#[test]
fn the_page_is_as_spdk_writes_it() {
    for layout in [Layout::DEFAULT, RLE] {
        for (setup, name) in [
            (&[EMPTY_PARENT] as &[&[Op]], "vol"),
            (&[EMPTY_PARENT, SNAP2], "snap2"),
            (&[EMPTY_PARENT, &[Op::SetXattr("vol", "a", 3000)]], "vol"),
        ] {
            let detach = run(image_after(layout, setup, Op::Detach(name), false));
            let spdk = run(image_after(layout, setup, Op::Decouple(name), false));
            assert!(detach == spdk, "{name}, {layout:?}: {:x?}", differing(&detach, &spdk));
        }
    }
}

/// Other internal xattrs stay, and with them the flag that says that there are any.
#[test]
fn other_internal_xattrs_stay() {
    for layout in [Layout::DEFAULT, RLE] {
        let detach = run(image_after(layout, &[EMPTY_PARENT], Op::Detach("vol"), true));
        let spdk = run(image_after(layout, &[EMPTY_PARENT], Op::Decouple("vol"), true));
        assert!(detach == spdk, "{layout:?}: {:x?}", differing(&detach, &spdk));
    }
}

/// The bytes of a store that is in use after one operation. `vol` has another internal xattr if it is to.
async fn image_after(
    layout: Layout,
    setup: &'static [&'static [Op]],
    op: Op,
    with_internal_xattr: bool,
) -> Vec<u8> {
    let (image, names) = prepare(layout, setup).await;
    let mut world = World::load(&image, None, &names).await.unwrap();
    if with_internal_xattr {
        world.store.set_internal_xattr(world.blob("vol"), c"OTHER", b"value").await.unwrap();
    }
    world.play(IN_USE).await.unwrap();
    world.play(op).await.unwrap();
    let after = image.borrow().clone();
    let state = world.whole_state().await.unwrap();
    assert_eq!(state[&names["vol"]].internal_xattrs.contains_key("OTHER"), with_internal_xattr);
    world.unload().await.unwrap();
    after
}

/// Where they differ.
fn differing(one: &[u8], other: &[u8]) -> Vec<usize> {
    (0..one.len()).filter(|&at| one[at] != other[at]).collect()
}

/// SPDK would write all pages anew, in other places. The one that has named the parent is in its place
/// what SPDK would write, and the others are as they were.
#[test]
fn a_later_page_is_as_spdk_writes_it() {
    /// Where a page's descriptors end, and the number of the next page and the crc follow.
    const END: usize = MD_PAGE_LEN - 8;
    for layout in [Layout::DEFAULT, RLE] {
        for (setup, name, sequence_num) in [
            (&[EMPTY_PARENT, IN_THE_SECOND] as &[&[Op]], "vol", 1),
            (&[EMPTY_PARENT, THREE_PAGES], "vol", 2),
            (&[EMPTY_PARENT, SNAP2_IN_THE_SECOND], "snap2", 1),
        ] {
            run(async move {
                let (image, names) = prepare(layout, setup).await;
                let mut world = World::load(&image, None, &names).await.unwrap();
                let before = image.borrow().clone();
                world.play(Op::Detach(name)).await.unwrap();
                let after = image.borrow().clone();
                world.unload().await.unwrap();
                let changed = changed_pages(&before, &after);
                assert_eq!(changed.len(), 1, "{name}, {layout:?}");
                let page = &after[changed[0]..changed[0] + MD_PAGE_LEN];
                assert_eq!(read_u32(page, 8), sequence_num);

                let spdk = image_after(layout, setup, Op::Decouple(name), false).await;
                let pages = spdk.chunks(MD_PAGE_LEN);
                assert!(pages.into_iter().any(|by_spdk| by_spdk[..END] == page[..END]));
            });
        }
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Where the pages are that have changed.
fn changed_pages(before: &[u8], after: &[u8]) -> Vec<usize> {
    let starts = (0..before.len()).step_by(MD_PAGE_LEN);
    let page = |at: usize| at..at + MD_PAGE_LEN;
    starts.filter(|&at| before[page(at)] != after[page(at)]).collect()
}

/// A metadata page may take more room than it has content.
#[cfg(spdk_md_page_size)]
#[test]
fn a_page_may_be_larger() {
    for extent_table in [true, false] {
        for md_page_len in [8, 16, 32, 64].map(|kib| kib * 1024) {
            // There is one metadata page for each cluster.
            let layout = Layout { cluster_len: 4 * md_page_len, md_page_len, extent_table };
            for (setup, name) in [
                (&[CHAIN] as &[&[Op]], "vol"),
                (&[CHAIN], "snap2"),
                (&[CHAIN, IN_THE_SECOND], "vol"),
            ] {
                run(async move {
                    let (image, names) = prepare(layout, setup).await;
                    let (io, hook) = watch();
                    let mut world = World::load(&image, Some(hook), &names).await.unwrap();
                    let before = image.borrow().clone();
                    io.borrow_mut().clear();
                    world.play(Op::Detach(name)).await.unwrap();
                    // SPDK writes a root page with all of its room, and the others without.
                    let is_root = setup.len() == 1;
                    let len = if is_root { md_page_len } else { MD_PAGE_LEN };
                    assert_eq!(io.borrow()[io.borrow().len() - 2..], [Io::Write(len), Io::Flush]);
                    assert_eq!(changed_pages(&before, &image.borrow()).len(), 1);
                    let after = world.whole_state().await.unwrap();
                    assert_eq!(after[&names[name]].parent, sys::SPDK_BLOBID_INVALID);
                    world.unload().await.unwrap();
                    assert_eq!(load(&image, &names).await, after, "{layout:?}");
                });
            }
        }
    }
}

/// A sync of SPDK's that has failed is forgotten by SPDK: the blob is clean. What it should have written
/// is not on the device, and is not for a detach to write by the way.
#[test]
fn what_spdk_has_failed_to_write_stays_unwritten() {
    run(async {
        let (image, names) = prepare(Layout::DEFAULT, &[CHAIN]).await;
        let fails = Rc::new(RefCell::new(false));
        let failing = Rc::clone(&fails);
        let hook: Hook = Box::new(move |event| match event {
            hooked_dev::Event::Write { .. } if *failing.borrow() => -libc::EIO,
            _ => 0,
        });
        let mut world = World::load(&image, Some(hook), &names).await.unwrap();
        world.play(IN_USE).await.unwrap();
        *fails.borrow_mut() = true;
        world.play(Op::SetXattr("vol", "lost", 20)).await.unwrap_err();
        *fails.borrow_mut() = false;
        check_unwritten(world, &image, &names, "lost").await;
    });
}

/// The same of what nobody has tried to write yet.
#[test]
fn what_is_dirty_in_memory_stays_unwritten() {
    run(async {
        let (image, names) = prepare(Layout::DEFAULT, &[CHAIN]).await;
        let mut world = World::load(&image, None, &names).await.unwrap();
        world.play(IN_USE).await.unwrap();
        world.store.set_xattr_in_memory(world.blob("vol"), c"lost", b"x").unwrap();
        check_unwritten(world, &image, &names, "lost").await;
    });
}

/// `vol` has an xattr in memory that is not on the device: neither is it after a detach, and the next
/// write of SPDK's has it, and no parent.
async fn check_unwritten(mut world: World, image: &Image, names: &Names, xattr: &str) {
    let vol = names["vol"];
    let before = load(&copy(image), names).await;
    world.play(Op::Detach("vol")).await.unwrap();
    let after = load(&copy(image), names).await;
    assert!(world.whole_state().await.unwrap()[&vol].xattrs.contains_key(xattr));
    assert_eq!(after[&vol].parent, sys::SPDK_BLOBID_INVALID);
    assert_eq!(after[&vol].xattrs, before[&vol].xattrs);
    assert!(!after[&vol].xattrs.contains_key(xattr));
    world.play(Op::SetXattr("vol", "name", 20)).await.unwrap();
    let written = load(&copy(image), names).await;
    assert!(written[&vol].xattrs.contains_key(xattr));
    assert_eq!(written[&vol].parent, sys::SPDK_BLOBID_INVALID);
    world.unload().await.unwrap();
}

/// SPDK's own writes of the blob's metadata that come while its page is rewritten wait, and are done
/// afterwards.
#[test]
fn what_comes_meanwhile_is_written_afterwards() {
    for syncs in 1..=2 {
        run(async move {
            let (image, names) = prepare(Layout::DEFAULT, &[CHAIN]).await;
            let world = World::load(&image, None, &names).await.unwrap();
            let (store, vol, raw) = (&world.store, world.blob("vol"), world.blob("vol").as_ptr());
            // SAFETY: the blob is open, and this thread owns its metadata.
            let is_waited_for = || unsafe { !(*raw).pending_persists.tqh_first.is_null() };
            let detach = start(store.detach(names["vol"]));
            // The page is being read.
            // SAFETY: as above.
            assert!(unsafe { !(*raw).persists_to_complete.tqh_first.is_null() });
            let keys = [c"k", c"l"];
            let syncs: Vec<_> =
                keys[..syncs].iter().map(|key| start(store.set_xattr(vol, key, b"x"))).collect();
            assert!(is_waited_for());
            detach.await.unwrap();
            for sync in syncs {
                sync.await.unwrap();
            }
            let state = world.whole_state().await.unwrap();
            assert!(!is_waited_for());
            assert_eq!(state[&names["vol"]].parent, sys::SPDK_BLOBID_INVALID);
            assert_eq!(load(&copy(&image), &names).await, state);
            world.unload().await.unwrap();
        });
    }
}

/// The superblock stays as it is, and with it what it says of the masks of used pages and clusters: they
/// are right, because a detach uses and frees none. A load that believes them finds what one finds
/// that looks at every page.
#[test]
fn a_clean_and_an_unclean_load_agree() {
    for (setup, name) in [
        (&[CHAIN] as &[&[Op]], "vol"),
        (&[CHAIN], "snap2"),
        (&[CHAIN, TWO_PAGES], "vol"),
        (&[CHAIN, IN_THE_SECOND], "vol"),
        (&[CHAIN, THREE_PAGES], "vol"),
    ] {
        for layout in [Layout::DEFAULT, RLE] {
            run(async move {
                let (image, names) = prepare(layout, setup).await;
                let mut world = World::load(&image, None, &names).await.unwrap();
                let before = image.borrow().clone();
                world.play(Op::Detach(name)).await.unwrap();
                assert_eq!(before[..MD_PAGE_LEN], image.borrow()[..MD_PAGE_LEN]);
                let clean = copy(&image);
                // The next metadata write of SPDK's marks the store.
                world.play(IN_USE).await.unwrap();
                assert_ne!(before[..MD_PAGE_LEN], image.borrow()[..MD_PAGE_LEN]);
                let unclean = copy(&image);
                world.unload().await.unwrap();

                let mut states = Vec::new();
                for image in [clean, unclean, image] {
                    let mut state = load(&image, &names).await;
                    state.get_mut(&names["other"]).unwrap().xattrs.clear();
                    states.push(state);
                }
                assert_eq!(states[0], states[1]);
                assert_eq!(states[0], states[2]);
            });
        }
    }
}

/// What a device is asked to do, with the length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Io {
    Read(usize),
    Write(usize),
    Flush,
}

fn watch() -> (Rc<RefCell<Vec<Io>>>, Hook) {
    let all = Rc::new(RefCell::new(Vec::new()));
    let noted = Rc::clone(&all);
    let hook: Hook = Box::new(move |event| {
        noted.borrow_mut().push(match event {
            hooked_dev::Event::Read { len, .. } => Io::Read(len),
            hooked_dev::Event::Write { bytes, .. } => Io::Write(bytes.len()),
            hooked_dev::Event::Flush => Io::Flush,
        });
        0
    });
    (all, hook)
}

const ONE_OF_EACH: [Io; 3] = [Io::Read(MD_PAGE_LEN), Io::Write(MD_PAGE_LEN), Io::Flush];

#[test]
fn a_detach_costs_one_read_one_write_and_one_flush() {
    for name in ["vol", "snap2"] {
        run(async move {
            let (image, names) = prepare(Layout::DEFAULT, &[CHAIN]).await;
            assert_eq!(cost(&image, &names, name).await, ONE_OF_EACH);
        });
    }
}

/// Each extent page that the lvol has takes an entry in its extent table, which fills the pages after
/// the root. The parent is named in the root.
#[test]
fn a_blob_of_many_pages_costs_no_more() {
    const PAGES: u32 = 3;
    /// `SPDK_EXTENTS_PER_EP`, and the entries of the extent table in one page.
    const PER_EXTENT_PAGE: u64 = 512;
    const PER_PAGE: u64 = 508;
    let extent_pages = u64::from(PAGES) * PER_PAGE;
    run(async move {
        let image = image(12_288);
        let mut world = World::create(&image, Layout::DEFAULT).await.unwrap();
        // A large map, which a sync would copy.
        world.play(Op::Create("vol", extent_pages * PER_EXTENT_PAGE)).await.unwrap();
        world.play(Op::Snapshot("vol", "snap1")).await.unwrap();
        for extent_page in 0..extent_pages {
            let cluster = extent_page * PER_EXTENT_PAGE;
            world.store.write_io_unit(world.blob("vol"), cluster, 0x11).await.unwrap();
        }
        // SAFETY: the blob is open, and this thread owns its metadata.
        let pages = unsafe { (*world.blob("vol").as_ptr()).active.num_pages };
        assert!(pages >= PAGES, "{pages} pages");
        let names = world.names.clone();
        world.unload().await.unwrap();
        let before = image.borrow().clone();
        assert_eq!(cost(&image, &names, "vol").await, ONE_OF_EACH);
        // The root page was full, and is not any more. (The unload has written the superblock.)
        let root = root_page(&before, names["vol"]);
        assert!(changed_pages(&before, &image.borrow()).contains(&root));
        let is_empty = |image: &[u8]| image[root..root + MD_PAGE_LEN - 8].ends_with(&[0; 21]);
        assert!(!is_empty(&before) && is_empty(&image.borrow()));
        World::load(&image, None, &names).await.unwrap().unload().await.unwrap();
    });
}

/// What a detach asks the device to do.
async fn cost(image: &Image, names: &Names, name: Name) -> Vec<Io> {
    let (io, hook) = watch();
    let mut world = World::load(image, Some(hook), names).await.unwrap();
    io.borrow_mut().clear();
    world.play(Op::Detach(name)).await.unwrap();
    let cost = io.borrow().clone();
    world.unload().await.unwrap();
    cost
}

/// A page on the device that is not what memory says it is: nothing is written.
#[test]
fn a_wrong_page_is_refused() {
    /// Where a page has its blob's id, its number in the blob, and its crc.
    const ID: usize = 0;
    const SEQUENCE_NUM: usize = 8;
    const CRC: usize = MD_PAGE_LEN - 4;
    run(async {
        let (image, names) = prepare(Layout::DEFAULT, &[CHAIN]).await;
        let (io, hook) = watch();
        let mut world = World::load(&image, Some(hook), &names).await.unwrap();
        let before = world.whole_state().await.unwrap();
        let good = image.borrow().clone();
        let root = root_page(&good, names["vol"]);
        let snap = root + find(&good[root..root + MD_PAGE_LEN], b"SNAP");
        let parent = snap + b"SNAP".len();
        for (at, seal) in [
            (root + CRC, false),
            (root + ID, true),
            (root + SEQUENCE_NUM, true),
            (parent, true),
            (snap + 100, false),
        ] {
            let mut bad = good.clone();
            bad[at] ^= 4;
            if seal {
                let crc = crc(&bad[root..root + CRC]).to_le_bytes();
                bad[root + CRC..root + MD_PAGE_LEN].copy_from_slice(&crc);
            }
            image.borrow_mut().clone_from(&bad);
            io.borrow_mut().clear();
            let error = world.play(Op::Detach("vol")).await.unwrap_err();
            assert_eq!(error.code(), -libc::EILSEQ, "{error}");
            assert_eq!(*io.borrow(), [Io::Read(MD_PAGE_LEN)]);
            assert!(bad == *image.borrow());
        }
        *image.borrow_mut() = good;
        assert_eq!(world.whole_state().await.as_ref(), Ok(&before));
        world.play(Op::Detach("vol")).await.unwrap();
        world.unload().await.unwrap();
    });
}

/// Where on the device a blob's metadata begins: its id is the first thing in each of its pages, and the
/// page is not one of the masks, nor the superblock.
fn root_page(image: &[u8], id: BlobId) -> usize {
    let begins = |at: &usize| image[*at..].starts_with(&id.to_le_bytes());
    let pages = (0..image.len()).step_by(MD_PAGE_LEN);
    pages.filter(begins).find(|&at| read_u32(image, at + 8) == 0).expect("a root page")
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).expect("it is there")
}

/// `blob_md_page_calc_crc`
fn crc(bytes: &[u8]) -> u32 {
    // SAFETY: the function reads the bytes.
    unsafe { sys::spdk_crc32c_update(bytes.as_ptr().cast(), bytes.len(), u32::MAX) ^ u32::MAX }
}

fn copy(image: &Image) -> Image {
    Rc::new(RefCell::new(image.borrow().clone()))
}

/// What a load finds.
async fn load(image: &Image, names: &Names) -> State {
    let world = World::load(image, None, names).await.unwrap();
    let state = world.whole_state().await.unwrap();
    world.unload().await.unwrap();
    state
}
