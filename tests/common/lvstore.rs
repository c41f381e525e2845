//! Lvstores on sparse files.

use std::fs::File;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::rpc::{INVALID_PARAMS, Pending};
use super::target::Target;

pub const MIB: u64 = 1 << 20;
/// The block size of the base bdevs, and so of the lvols.
pub const BLOCK: u64 = 4096;

/// What an lvstore is made of.
#[derive(Debug, Clone, Copy)]
pub struct Lvstore {
    /// The size of the file, in MiB. It is sparse.
    pub size_mib: u64,
    pub cluster_size: u64,
    /// Metadata pages for each hundred clusters.
    pub md_pages_per_100_clusters: u32,
    /// Whether [`Target::fail_writes`] can make the device fail.
    pub can_fail: bool,
    /// Whether [`Target::slow_down`] can make the device slow.
    pub can_be_slow: bool,
    /// Whether the device has no unmap.
    pub without_unmap: bool,
}

impl Default for Lvstore {
    fn default() -> Lvstore {
        Lvstore {
            size_mib: 256,
            cluster_size: MIB,
            md_pages_per_100_clusters: 100,
            can_fail: false,
            can_be_slow: false,
            without_unmap: false,
        }
    }
}

/// The bdevs of one lvstore: the file's, which is the base bdev, and those on top of it.
#[derive(Debug, Clone)]
pub struct Disk {
    lvstore: String,
    options: Lvstore,
    file: PathBuf,
}

impl Disk {
    /// The bdev of the file.
    pub fn base_bdev(&self) -> String {
        format!("{}-base", self.lvstore)
    }

    fn failing_bdev(&self) -> String {
        format!("EE_{}", self.base_bdev())
    }

    fn slow_bdev(&self) -> String {
        format!("{}-slow", self.lvstore)
    }

    /// The bdev that the lvstore is on.
    fn top_bdev(&self) -> String {
        match self.options {
            Lvstore { can_be_slow: true, .. } => self.slow_bdev(),
            Lvstore { can_fail: true, .. } => self.failing_bdev(),
            _ => self.base_bdev(),
        }
    }

    /// Makes the bdevs. Those on top come first, and wait for the one beneath: SPDK looks for an
    /// lvstore on each bdev that comes and is not claimed yet.
    pub fn attach(&self, target: &Target) {
        self.create_upper_bdevs(target, 0);
        let mut aio = self.aio();
        // Without it the file can't be unmapped. SPDK before 24.05 hasn't got it.
        if target.call("bdev_aio_create", aio.clone()).is_err() {
            aio.as_object_mut().expect("it is an object").remove("fallocate");
            target.must("bdev_aio_create", aio);
        }
    }

    /// The same, with reads that take so long from the first on, if it can be slow. The answer comes when
    /// the lvstore is loaded.
    pub fn start_to_attach(&self, target: &Target, read_latency_us: u64) -> Pending {
        self.create_upper_bdevs(target, read_latency_us);
        let mut aio = self.aio();
        // As above. The question whether it is known ends before a file is opened.
        let mut probe = aio.clone();
        probe["filename"] = json!("/");
        let known = target.call("bdev_aio_create", probe);
        if known.is_err_and(|error| error.code == INVALID_PARAMS) {
            aio.as_object_mut().expect("it is an object").remove("fallocate");
        }
        target.start_call("bdev_aio_create", aio)
    }

    fn aio(&self) -> Value {
        json!({
            "name": self.base_bdev(), "filename": self.file, "block_size": BLOCK,
            "fallocate": !self.options.without_unmap,
        })
    }

    fn create_upper_bdevs(&self, target: &Target, read_latency_us: u64) {
        if self.options.can_be_slow {
            let beneath =
                if self.options.can_fail { self.failing_bdev() } else { self.base_bdev() };
            target.must(
                "bdev_delay_create",
                json!({
                    "base_bdev_name": beneath, "name": self.slow_bdev(),
                    "avg_read_latency": read_latency_us, "p99_read_latency": read_latency_us,
                    "avg_write_latency": 0, "p99_write_latency": 0,
                }),
            );
        }
        if self.options.can_fail {
            target.must("bdev_error_create", json!({"base_name": self.base_bdev()}));
        }
    }
}

impl Target {
    /// Makes an lvstore on a file of its own. It is there again after each start of the target.
    #[track_caller]
    pub fn create_lvstore(&mut self, name: &str, options: Lvstore) {
        let file = self.dir().join(format!("{name}.img"));
        File::create(&file)
            .and_then(|file| file.set_len(options.size_mib * MIB))
            .expect("a sparse file can be made");
        let disk = Disk { lvstore: name.to_owned(), options, file };
        disk.attach(self);
        self.must(
            "bdev_lvol_create_lvstore",
            json!({
                "bdev_name": disk.top_bdev(), "lvs_name": name,
                "cluster_sz": options.cluster_size,
                "num_md_pages_per_cluster_ratio": options.md_pages_per_100_clusters,
            }),
        );
        self.disks.push(disk);
    }

    /// The bdevs of an lvstore, or of the lvstore of an lvol.
    #[track_caller]
    fn disk(&self, name: &str) -> &Disk {
        let lvstore = name.split('/').next().unwrap_or(name);
        let Some(disk) = self.disks.iter().find(|disk| disk.lvstore == lvstore) else {
            panic!("this test has made no lvstore {lvstore}");
        };
        disk
    }

    /// The file that an lvstore is on.
    #[track_caller]
    pub fn file(&self, lvstore: &str) -> &std::path::Path {
        &self.disk(lvstore).file
    }

    /// The name of the bdev that does an lvstore's device I/O.
    #[track_caller]
    pub fn base_bdev(&self, lvstore: &str) -> String {
        self.disk(lvstore).base_bdev()
    }

    /// The cluster size of an lvol's lvstore. Other bdevs are taken to have clusters of 1 MiB.
    pub fn cluster_size(&self, bdev: &str) -> u64 {
        let disk = bdev.split_once('/').map(|_| self.disk(bdev));
        disk.map_or(MIB, |disk| disk.options.cluster_size)
    }

    #[track_caller]
    pub fn free_clusters(&self, lvstore: &str) -> u64 {
        let stores = self.must("bdev_lvol_get_lvstores", json!({"lvs_name": lvstore}));
        stores[0]["free_clusters"].as_u64().expect("an lvstore has a number of free clusters")
    }

    /// Makes the next writes to an lvstore's device fail, so many of them.
    #[track_caller]
    pub fn fail_writes(&self, lvstore: &str, count: u32) {
        self.inject(lvstore, "write", "failure", count);
    }

    /// Lets all I/O work again.
    #[track_caller]
    pub fn stop_failing(&self, lvstore: &str) {
        self.inject(lvstore, "clear", "failure", 0);
    }

    /// `bdev_error_inject_error` on an lvstore's device.
    #[track_caller]
    pub fn inject(&self, lvstore: &str, io_type: &str, error_type: &str, count: u32) {
        let disk = self.disk(lvstore);
        assert!(disk.options.can_fail, "{lvstore} was made without `can_fail`");
        self.must(
            "bdev_error_inject_error",
            json!({
                "name": disk.failing_bdev(), "io_type": io_type,
                "error_type": error_type, "num": count,
            }),
        );
    }

    /// Makes each I/O of an lvstore's device take so long; 0 for as fast as it can.
    #[track_caller]
    pub fn slow_down(&self, lvstore: &str, latency_us: u64) {
        self.slow_down_reads(lvstore, latency_us);
        self.slow_down_writes(lvstore, latency_us);
    }

    /// The same for writes alone.
    #[track_caller]
    pub fn slow_down_writes(&self, lvstore: &str, latency_us: u64) {
        self.set_latency(lvstore, ["avg_write", "p99_write"], latency_us);
    }

    /// The same for reads alone.
    #[track_caller]
    pub fn slow_down_reads(&self, lvstore: &str, latency_us: u64) {
        self.set_latency(lvstore, ["avg_read", "p99_read"], latency_us);
    }

    #[track_caller]
    fn set_latency(&self, lvstore: &str, types: [&str; 2], latency_us: u64) {
        let disk = self.disk(lvstore);
        assert!(disk.options.can_be_slow, "{lvstore} was made without `can_be_slow`");
        for latency_type in types {
            self.must(
                "bdev_delay_update_latency",
                json!({
                    "delay_bdev_name": disk.slow_bdev(),
                    "latency_type": latency_type, "latency_us": latency_us,
                }),
            );
        }
    }

    /// A bdev in memory, of this many MiB, that is not an lvol.
    #[track_caller]
    pub fn create_malloc(&self, name: &str, size_mib: u64) {
        self.must(
            "bdev_malloc_create",
            json!({"name": name, "num_blocks": size_mib * MIB / BLOCK, "block_size": BLOCK}),
        );
    }

    /// `bdev_get_bdevs` of one bdev, if there is one of that name.
    #[track_caller]
    pub fn bdev(&self, name: &str) -> Option<Value> {
        let mut bdevs = self.call("bdev_get_bdevs", json!({"name": name})).ok()?;
        Some(bdevs[0].take())
    }
}
