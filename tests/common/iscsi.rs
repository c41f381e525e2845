//! An outside client for an lvol's data: qemu-io over the target's own iSCSI.

use std::io::{Seek, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::target::Target;

const IQN: &str = "iqn.2016-06.io.spdk";

/// An lvol, or any bdev, that is exposed through iSCSI until this is dropped.
#[derive(Debug)]
pub struct Export<'a> {
    node: Node<'a>,
    url: String,
    read_only: bool,
    cluster_size: u64,
}

/// What qemu-io is to do with one lvol.
#[derive(Debug)]
pub struct Work {
    pub lvol: String,
    pub read_only: bool,
    pub commands: Vec<String>,
}

/// An iSCSI target node, until this is dropped.
#[derive(Debug)]
struct Node<'a> {
    target: &'a Target,
    port: u16,
    iqn: String,
    outlives_this: bool,
}

impl Target {
    /// Exposes an lvol, for reading only if it is a snapshot.
    #[track_caller]
    pub fn export(&self, alias: &str) -> Export<'_> {
        let Some(bdev) = self.bdev(alias) else {
            panic!("there is no bdev {alias} to expose");
        };
        let read_only = bdev["supported_io_types"]["write"] == false;
        let node = self.node(&[alias]);
        let url = node.url(0);
        Export { node, url, read_only, cluster_size: self.cluster_size(alias) }
    }

    /// Runs commands of qemu-io on several lvols, in one call of it: each call takes longer than
    /// what it is for.
    pub fn qemu_io(&self, work: &[Work]) -> Result<(), String> {
        let bdevs: Vec<_> = work.iter().map(|work| work.lvol.as_str()).collect();
        let node = self.node(&bdevs);
        let mut qemu_io = Command::new("qemu-io");
        for (lun, work) in work.iter().enumerate() {
            let cache = if work.read_only { "-r -o" } else { "-o cache.no-flush=on," };
            qemu_io.args(["-c", &format!("open {cache}driver=raw {}", node.url(lun))]);
            for command in &work.commands {
                qemu_io.args(["-c", command]);
            }
            qemu_io.args(["-c", "close"]);
        }
        run(&mut qemu_io)
    }

    /// A node whose units are these bdevs.
    #[track_caller]
    fn node(&self, bdevs: &[&str]) -> Node<'_> {
        static NODES: AtomicUsize = AtomicUsize::new(0);
        let port = self.portal();
        let name = format!("export{}", NODES.fetch_add(1, Ordering::Relaxed));
        let luns: Vec<_> = (0..)
            .zip(bdevs)
            .map(|(lun, bdev): (u32, _)| json!({"bdev_name": bdev, "lun_id": lun}))
            .collect();
        self.must(
            "iscsi_create_target_node",
            json!({
                "name": name, "alias_name": name,
                "pg_ig_maps": [{"pg_tag": 1, "ig_tag": 1}],
                "luns": luns, "queue_depth": 64, "disable_chap": true,
            }),
        );
        Node { target: self, port, iqn: format!("{IQN}:{name}"), outlives_this: false }
    }

    /// Writes to an lvol: each of these clusters is filled with its byte.
    #[track_caller]
    pub fn write(&self, alias: &str, clusters: &[(u64, u8)]) {
        self.export(alias).write(clusters);
    }

    /// Checks every byte of an lvol: there is one byte for each of its clusters, which must be full
    /// of it.
    #[track_caller]
    pub fn expect_data(&self, alias: &str, clusters: &[u8]) {
        assert_eq!(
            self.lvol(alias).size,
            clusters.len() as u64 * self.cluster_size(alias),
            "the size of {alias}"
        );
        if let Err(error) = self.export(alias).check(clusters) {
            panic!("{alias} does not read as it should:\n{error}");
        }
    }

    /// Unmaps clusters of an lvol, each with a request of its own.
    #[track_caller]
    pub fn unmap(&self, alias: &str, clusters: &[u64]) {
        self.export(alias).unmap(clusters);
    }

    /// The port of the target's iSCSI portal, which is made when the first lvol is exposed.
    #[track_caller]
    fn portal(&self) -> u16 {
        let mut portal = self.portal.lock().expect("no test panicked while it held the lock");
        *portal.get_or_insert_with(|| {
            self.must(
                "iscsi_create_initiator_group",
                json!({"tag": 1, "initiators": ["ANY"], "netmasks": ["127.0.0.1/32"]}),
            );
            let mut tried = Vec::new();
            while tried.len() < 10 {
                let port = free_port();
                let created = self.call(
                    "iscsi_create_portal_group",
                    json!({"tag": 1, "portals": [{"host": "127.0.0.1", "port": port.to_string()}]}),
                );
                // Somebody else may have taken the port meanwhile.
                match created {
                    Ok(_) => return port,
                    Err(error) => tried.push(format!("port {port}: {error}")),
                }
            }
            panic!("no port for the iSCSI portal: {}", tried.join(", "));
        })
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port can be had");
    listener.local_addr().expect("a listener has an address").port()
}

impl Export<'_> {
    /// Where an iSCSI initiator finds the lvol, which stays exposed for good.
    pub fn leave_exposed(self) -> String {
        let Export { mut node, url, .. } = self;
        node.outlives_this = true;
        url
    }

    /// Fills each of these clusters with its byte.
    #[track_caller]
    pub fn write(&self, clusters: &[(u64, u8)]) {
        let size = self.cluster_size;
        self.must(clusters.iter().map(|(cluster, byte)| write(cluster * size, size, *byte)));
    }

    /// Checks that the lvol begins with these clusters: one byte for each, which must be full of
    /// it.
    pub fn check(&self, clusters: &[u8]) -> Result<(), String> {
        let size = self.cluster_size;
        self.qemu_io((0..).zip(clusters).map(|(cluster, byte)| read(cluster * size, size, *byte)))
    }

    /// The same for more commands than fit into a command line.
    #[track_caller]
    pub fn must_all(&self, commands: impl IntoIterator<Item = String>) {
        let mut file = tempfile::tempfile().expect("a temporary file can be made");
        for command in commands {
            writeln!(file, "{command}").expect("a temporary file can be written");
        }
        file.rewind().expect("a file can be read from its start");
        let mut qemu_io = Command::new("qemu-io");
        qemu_io.args(["-f", "raw", "-t", "unsafe", &self.url]).stdin(file);
        if let Err(error) = run(&mut qemu_io) {
            panic!("{error}");
        }
    }

    /// Every byte of it.
    #[track_caller]
    pub fn read_all(&self) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        let mut qemu_img = Command::new("qemu-img");
        qemu_img.args(["convert", "-f", "raw", "-O", "raw", &self.url]).arg(file.path());
        let output = qemu_img.output().expect("qemu-img is there if qemu-io is");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {complaint}", self.url);
        std::fs::read(file.path()).expect("a file can be read")
    }

    /// Unmaps clusters, each with a request of its own.
    #[track_caller]
    pub fn unmap(&self, clusters: &[u64]) {
        let size = self.cluster_size;
        self.must(clusters.iter().map(|cluster| format!("discard {} {size}", cluster * size)));
    }

    /// Runs commands of qemu-io, which must succeed.
    #[track_caller]
    pub fn must(&self, commands: impl IntoIterator<Item = String>) {
        if let Err(error) = self.qemu_io(commands) {
            panic!("{error}");
        }
    }

    /// Runs commands of qemu-io in one call of it. The error is what it complains of.
    pub fn qemu_io(&self, commands: impl IntoIterator<Item = String>) -> Result<(), String> {
        let mut qemu_io = Command::new("qemu-io");
        qemu_io.args(["-f", "raw"]);
        // Lvols have no flush, and nothing that would need one: what they have done is done.
        qemu_io.args(if self.read_only {
            ["-r", "-t", "none"].as_slice()
        } else {
            &["-t", "unsafe"]
        });
        for command in commands {
            qemu_io.args(["-c", &command]);
        }
        run(qemu_io.arg(&self.url))
    }
}

impl Node<'_> {
    fn url(&self, lun: usize) -> String {
        format!("iscsi://127.0.0.1:{}/{}/{lun}", self.port, self.iqn)
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // A test that has failed may have no target any more.
        if !self.outlives_this && !std::thread::panicking() {
            let node = json!({"name": self.iqn});
            let _ = self.target.call("iscsi_delete_target_node", node);
        }
    }
}

/// Runs qemu-io. The error is what it complains of.
fn run(qemu_io: &mut Command) -> Result<(), String> {
    let output = match qemu_io.output() {
        Ok(output) => output,
        Err(error) => panic!(
            "qemu-io could not be started ({error}): install qemu-utils and \
             qemu-block-extra, or run `make test`, which does"
        ),
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(
        !text.contains("Unknown protocol 'iscsi'"),
        "qemu-io has no iSCSI: install qemu-block-extra, or run `make test`, which does"
    );
    let complaints: Vec<_> = text.lines().filter(|line| line.contains("fail")).collect();
    if output.status.success() && complaints.is_empty() {
        Ok(())
    } else if complaints.is_empty() {
        Err(text.into_owned())
    } else {
        Err(complaints.join("\n"))
    }
}

/// The command of qemu-io that fills a range with a byte.
pub fn write(offset: u64, length: u64, byte: u8) -> String {
    format!("write -P {byte:#04x} {offset} {length}")
}

/// The command of qemu-io that leaves the connection open for 2 s more. What a connection has done is
/// not in the bdev's counters for a moment when it is closed: `spdk_bdev_get_device_stat` adds up those
/// of channels that are gone before those of the ones that are there.
pub fn stay() -> String {
    "sleep 2000".to_owned()
}

/// The command of qemu-io that checks that a range is full of a byte.
pub fn read(offset: u64, length: u64, byte: u8) -> String {
    format!("read -P {byte:#04x} {offset} {length}")
}
