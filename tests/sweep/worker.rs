//! Plays operations on a target, with detaches and without, and compares what comes of it.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Answer, Call, Client, HANGS_AFTER, IS_LEFT_OUT_AFTER, Lost, arm, disarm};
use crate::common::metadata::crc32c;
use crate::ops::{Kind, Op, SIZE_MIB, set_up};
use crate::state::{CLUSTER, Id, Lvol, State, list, reading};
use crate::{Fault, Report};

const MIB: u64 = 1 << 20;
/// The size of the base bdev.
const BASE_MIB: u64 = 16;
/// What its base bdev grows to before an lvstore does.
const GROWN_MIB: u64 = 32;
const BLOCK: u64 = 4096;
/// The number of the lvstore that all others are copies of.
const FIRST: &str = "00000";
/// The UUID of the external snapshot.
const EXTERNAL_UUID: &str = "e0e0e0e0-0000-4000-8000-000000000000";
const UUID_LEN: usize = EXTERNAL_UUID.len();
/// Bytes of a metadata page.
const PAGE: usize = 4096;
const DETACH: &str = "bdev_lvol_detach_parent";
/// A cluster that no lvol owns at first. Each gets it by a write.
const WRITTEN: u64 = 7;
/// More writes than any operation makes.
const TOO_MANY: u64 = 60;

/// A target, and lvstores in files that it gets one after the other.
pub struct Worker {
    client: Client,
    folder: PathBuf,
    /// The lvstore that each operation begins with: after a clean unload, and after a crash.
    clean: PathBuf,
    crashed: PathBuf,
    /// How many copies there are of it. Each has a name of its own, so that a target can have several:
    /// what an operation of SPDK's has left can't always be unloaded.
    images: usize,
    /// The number of the one in use.
    number: String,
    report: Report,
    /// Each lvol is detached after each failed write, and all is told. Otherwise the lvols take turns.
    everything: bool,
}

/// How an operation ended.
struct Played {
    /// `None` if it has no answer.
    answer: Option<Answer>,
    writes: u64,
}

/// What is there after an operation without a detach.
struct Control {
    fault: Fault,
    answer: Option<Answer>,
    memory: State,
    /// The lvols that bear no I/O.
    unusable: BTreeSet<Id>,
    unloads: bool,
    images: Images,
    writes: u64,
}

impl Control {
    /// Whether no write failed.
    fn is_whole(&self) -> bool {
        self.writes < self.fault.first
    }
}

/// What is on the device, to be looked at in another target.
struct Images {
    /// As after a crash.
    crash: PathBuf,
    /// After an unload, if there was one.
    unload: Option<PathBuf>,
}

/// A detach, or several, after an operation.
struct Detached {
    /// Those that were done.
    done: Vec<Id>,
    what: String,
    images: Images,
}

impl Detached {
    /// What is not as it must be if it was so before.
    fn difference(&self, before: &State, after: &State) -> Option<String> {
        let mut expected = before.clone();
        for &id in &self.done {
            expected = expected.without_parent_of(id);
        }
        let mut after = after.clone();
        if self.done.iter().any(|id| !before.lvols.contains_key(id)) {
            // Without its parent an lvol may come up that SPDK alone can't load.
            after.lvols.retain(|id, _| before.lvols.contains_key(id));
            after.free_clusters = before.free_clusters;
        }
        after.difference(&expected)
    }
}

impl Worker {
    pub fn start(folder: &Path, helper: &Path) -> Worker {
        fs::create_dir(folder).expect("a folder can be made");
        let mut worker = Worker {
            client: Client::new(folder, helper),
            folder: folder.to_owned(),
            clean: folder.join("clean.img"),
            crashed: folder.join("crashed.img"),
            images: 0,
            number: String::new(),
            report: Report::default(),
            everything: std::env::var_os("SWEEP").is_some(),
        };
        worker.prepare().expect("the target neither crashes nor hangs without a failing write");
        worker
    }

    pub fn finish(mut self) -> Report {
        self.report.starts = self.client.starts;
        self.report
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.everything {
            eprintln!("{}", what());
        }
    }

    /// Makes the lvstore that all begin with.
    fn prepare(&mut self) -> Result<(), Lost> {
        let image = self.folder.join(format!("{FIRST}.img"));
        File::create(&image).and_then(|file| file.set_len(BASE_MIB * MIB)).expect("a file");
        self.attach(&image)?;
        let store = json!({"bdev_name": "base", "lvs_name": "lvs", "cluster_sz": CLUSTER});
        self.must(&("bdev_lvol_create_lvstore", store))?;
        for call in set_up() {
            self.must(&call)?;
        }
        copy(&image, &self.crashed);
        self.must(&delete_base())?;
        copy(&image, &self.clean);
        Ok(())
    }

    /// One that has the external snapshot, unless one runs.
    fn start_target(&mut self) -> Result<(), Lost> {
        if self.client.is_running() {
            return Ok(());
        }
        self.client.start();
        self.must(&(
            "bdev_malloc_create",
            json!({
                "name": "ext", "num_blocks": SIZE_MIB * MIB / BLOCK, "block_size": BLOCK,
                "uuid": EXTERNAL_UUID,
            }),
        ))?;
        let all = SIZE_MIB * MIB;
        let fill = json!({"name": "ext", "cluster": 0, "fill": 0xee, "cluster_size": all});
        self.must(&("sweep_write", fill))
    }

    fn must(&mut self, call: &Call) -> Result<(), Lost> {
        let answer = self.call(call.clone())?;
        assert!(answer.is_ok(), "{call:?}: {answer:?}\n{}", self.client.log_tail());
        Ok(())
    }

    fn call(&mut self, call: Call) -> Result<Answer, Lost> {
        let (method, params) = self.named(call);
        self.client.call(method, params)
    }

    /// The same for the lvstore that is in use.
    fn named(&self, (method, params): Call) -> Call {
        let number = &self.number;
        let text = params
            .to_string()
            .replace("\"lvs/", &format!("\"lvs{number}/"))
            .replace("\"new/", &format!("\"new{number}/"))
            .replace("\"lvs\"", &format!("\"lvs{number}\""))
            .replace("\"new-lvs\"", &format!("\"new{number}\""))
            .replace("\"base\"", &format!("\"base{number}\""));
        (method, serde_json::from_str(&text).expect("it was JSON"))
    }

    fn list(&mut self) -> Result<State, Lost> {
        list(&mut self.client, &self.number)
    }

    /// Gives the target the lvstore in a file.
    fn attach(&mut self, image: &Path) -> Result<(), Lost> {
        self.start_target()?;
        let number = image.file_stem().and_then(|stem| stem.to_str());
        self.number = number.expect("it is called after its lvstore").to_owned();
        let wait = ("bdev_wait_for_examine", Value::Null);
        for fallocate in [true, false] {
            let aio = self.named(aio(image, fallocate));
            let answers = self.client.exchange(&[aio, wait.clone()])?;
            // A release that has no `fallocate` there refuses it.
            if answers[0].is_ok() {
                break;
            }
        }
        Ok(())
    }

    /// Unloads the lvstore, which may have gone already; the error says what became of that.
    fn unload(&mut self, patience: Duration) -> Result<(), String> {
        let call = self.named(delete_base());
        let left = self.client.call_within(call, patience).and_then(|_| self.list());
        match left {
            Ok(state) if state.lvols.is_empty() => Ok(()),
            Ok(state) => Err(format!("an unload (leaves {:?})", state.lvols.keys())),
            Err(lost) => Err(format!("an unload ({lost:?})")),
        }
    }

    /// Plays an operation on a new copy of the lvstore.
    fn play(&mut self, op: &Op, fault: Fault) -> Result<(PathBuf, Played), Lost> {
        self.images += 1;
        let number = format!("{:05}", self.images);
        let image = self.folder.join(format!("{number}.img"));
        let arm = arm(fault.first, fault.count);
        let calls = match &op.kind {
            Kind::Load { clean } => {
                copy_as(if *clean { &self.clean } else { &self.crashed }, &image, &number);
                self.start_target()?;
                self.client.exchange(&[arm])?;
                self.attach(&image)?;
                vec![disarm()]
            }
            Kind::Rpc(call) | Kind::Grow(call) => {
                copy_as(&self.clean, &image, &number);
                self.attach(&image)?;
                if matches!(op.kind, Kind::Grow(_)) {
                    let file = File::options().write(true).open(&image).expect("it is there");
                    file.set_len(GROWN_MIB * MIB).expect("a file can grow");
                    self.must(&("bdev_aio_rescan", json!({"name": "base"})))?;
                }
                vec![arm, self.named(call.clone())]
            }
            Kind::Unload => {
                copy_as(&self.clean, &image, &number);
                self.attach(&image)?;
                vec![arm, self.named(delete_base())]
            }
        };
        let mut answers = self.client.exchange(&calls)?;
        let last = answers.pop();
        let (answer, writes) = match op.kind {
            Kind::Load { .. } => (None, last),
            _ => (last, self.client.exchange(&[disarm()])?.pop()),
        };
        let writes = writes.and_then(Result::ok).and_then(|writes| writes.as_u64());
        Ok((image, Played { answer, writes: writes.expect("a number of writes") }))
    }

    /// Plays an operation with each of its writes failing, and detaches lvols after it.
    pub fn sweep(&mut self, op: &Op) {
        let mut controls = Vec::new();
        for first in 1.. {
            assert!(first < TOO_MANY, "{} needs more than {TOO_MANY} writes", op.name);
            let once = self.sweep_fault(op, Fault { first, count: 1 }, &mut controls);
            // What follows the write that fails, works or fails as well.
            if once.is_none_or(|writes| writes > first) {
                self.sweep_fault(op, Fault { first, count: u64::MAX }, &mut controls);
            }
            if once.is_some_and(|writes| writes < first) {
                break;
            }
        }
        // What is on the device is looked at by a target that has never seen it.
        self.client.kill();
        for (control, detached) in controls {
            self.judge(op, &control, &detached);
            self.forget(&control.images);
            for detached in &detached {
                self.forget(&detached.images);
            }
        }
    }

    /// How many writes the operation made, if SPDK survives it.
    fn sweep_fault(
        &mut self,
        op: &Op,
        fault: Fault,
        controls: &mut Vec<(Control, Vec<Detached>)>,
    ) -> Option<u64> {
        let control = self.control(op, fault)?;
        let writes = control.writes;
        let detached = self.detach_each(op, &control);
        controls.push((control, detached));
        Some(writes)
    }

    fn forget(&self, images: &Images) {
        for image in [Some(&images.crash), images.unload.as_ref()].into_iter().flatten() {
            let _ = fs::remove_file(image);
        }
    }

    fn left_out(&mut self, op: &Op, fault: Fault, what: &str) {
        let what = format!("{}, {fault}: {what}", op.name);
        self.say(|| format!("left out: {what}"));
        self.report.left_out.insert(what);
    }

    fn found(&mut self, what: String) {
        self.say(|| format!("FINDING: {what}"));
        self.report.findings.push(what);
    }

    /// Plays an operation without a detach. `None` if SPDK doesn't survive it.
    fn control(&mut self, op: &Op, fault: Fault) -> Option<Control> {
        let mut unusable = BTreeSet::new();
        loop {
            let played = self.play(op, fault);
            let (image, played) = match played {
                Ok(played) => played,
                Err(lost) => {
                    self.left_out(op, fault, &format!("the operation ({lost:?})"));
                    return None;
                }
            };
            let mut memory = match self.list() {
                Ok(state) => state,
                Err(lost) => {
                    self.left_out(op, fault, &format!("a list of the lvols ({lost:?})"));
                    return None;
                }
            };
            if let Err((id, lost)) = self.use_each(&mut memory, &unusable) {
                let alias = &memory.lvols[&id].alias;
                self.left_out(op, fault, &format!("I/O of {alias} ({lost:?})"));
                unusable.extend(memory.with_descendants(id));
                let _ = fs::remove_file(&image);
                continue;
            }
            let writes = played.writes;
            self.report.faults += usize::from(writes >= fault.first);
            let (images, unloaded) = self.take_images(&image, Some(IS_LEFT_OUT_AFTER));
            if let Some(what) = unloaded.err() {
                self.left_out(op, fault, &what);
            }
            self.say(|| {
                let Played { answer, writes } = &played;
                format!("{}, {fault}: {answer:x?}, {writes} writes", op.name)
            });
            let unloads = images.unload.is_some();
            let answer = played.answer;
            return Some(Control { fault, answer, memory, unusable, unloads, images, writes });
        }
    }

    /// Reads the lvols, writes to them and reads them again, one after the other; the error names the one
    /// that the target doesn't survive.
    fn use_each(&mut self, state: &mut State, unusable: &BTreeSet<Id>) -> Result<(), (Id, Lost)> {
        let reads = reads(state, unusable);
        for (id, call) in reads.iter().cloned().chain(writes(state, unusable)).chain(reads.clone())
        {
            let call = self.named(call);
            let answer = self.client.call_within(call, IS_LEFT_OUT_AFTER);
            state.note(id, &answer.map_err(|lost| (id, lost))?);
        }
        Ok(())
    }

    /// Writes to the lvols that bear it, one after the other: some may share a cluster, by SPDK's fault.
    /// Then reads those that bear that.
    fn use_all(
        &mut self,
        state: &mut State,
        unwritable: &BTreeSet<Id>,
        unreadable: &BTreeSet<Id>,
    ) -> Result<(), Lost> {
        for (_, call) in writes(state, unwritable) {
            // One may be refused, with a detach as without.
            let _ = self.call(call)?;
        }
        self.read_all(state, unreadable)
    }

    /// Reads the lvols, all at once.
    fn read_all(&mut self, state: &mut State, unreadable: &BTreeSet<Id>) -> Result<(), Lost> {
        let (ids, calls): (Vec<_>, Vec<_>) =
            reads(state, unreadable).into_iter().map(|(id, call)| (id, self.named(call))).unzip();
        for (id, answer) in ids.iter().zip(self.client.exchange(&calls)?) {
            state.note(*id, &answer);
        }
        Ok(())
    }

    /// Keeps what a crash would leave now, and what a clean unload leaves.
    fn take_images(
        &mut self,
        image: &Path,
        unload_within: Option<Duration>,
    ) -> (Images, Result<(), String>) {
        let crash = image.with_extension("crash");
        copy(image, &crash);
        let unloaded = unload_within.map(|patience| self.unload(patience));
        if !matches!(unloaded, Some(Ok(()))) {
            if unloaded.is_some() {
                self.client.kill();
            }
            let _ = fs::remove_file(image);
            return (Images { crash, unload: None }, unloaded.unwrap_or(Ok(())));
        }
        (Images { crash, unload: Some(image.to_owned()) }, Ok(()))
    }

    /// Detaches the operation's lvols, each after the operation on an lvstore of its own; and all that have a parent, one after the other.
    fn detach_each(&mut self, op: &Op, control: &Control) -> Vec<Detached> {
        let found = op.detached.iter().filter_map(|name| control.memory.find(name));
        let mut turns: Vec<Vec<Id>> = found.map(|id| vec![id]).collect();
        if control.fault.count != 1 {
            // Mostly as if one write had failed.
            turns.clear();
        } else if !self.everything && !control.is_whole() && !turns.is_empty() {
            turns = vec![turns.swap_remove(control.fault.first as usize % turns.len())];
        }
        turns.push(control.memory.lvols.keys().copied().collect());
        turns.into_iter().filter_map(|lvols| self.detach(op, control, &lvols)).collect()
    }

    fn detach(&mut self, op: &Op, control: &Control, lvols: &[Id]) -> Option<Detached> {
        let short = match lvols {
            [one] => control.memory.lvols[one].alias.as_str(),
            _ => "all",
        };
        let what = format!("{}, {}, detach {short}", op.name, control.fault);
        let lost = |what: &str, step: &str, lost: Lost| format!("{what}: {step} ({lost:?})");
        let (image, played) = match self.play(op, control.fault) {
            Ok(played) => played,
            Err(error) => {
                self.found(lost(&what, "the operation itself", error));
                return None;
            }
        };
        let [without, with] = [&control.answer, &played.answer]
            .map(|answer| answer.as_ref().map(|answer| answer.as_ref().map(drop)));
        assert_eq!(with, without, "{what}: the operation's answer is another one");
        self.report.combinations += 1;
        let mut expected = control.memory.clone();
        let mut unreadable = control.unusable.clone();
        let mut done = Vec::new();
        for &id in lvols {
            let lvol = &control.memory.lvols[&id].alias;
            let answer = match self.call((DETACH, json!({"name": lvol}))) {
                Ok(answer) => answer,
                Err(error) => {
                    let tail = self.client.log_tail();
                    self.say(|| tail);
                    self.found(lost(&what, &format!("the detach of {lvol}"), error));
                    return None;
                }
            };
            self.say(|| format!("  {what}: {lvol} {answer:?}"));
            let code = answer.as_ref().map_or_else(|(code, _)| code.to_string(), Value::to_string);
            *self.report.answers.entry(code).or_default() += 1;
            if control.is_whole() {
                let has_parent = expected.has_parent(id);
                let right = match &answer {
                    Ok(_) => has_parent,
                    Err((code, _)) => !has_parent && [-22, -19].contains(code),
                };
                if !right {
                    self.found(format!("{what}: without a failed write {lvol} gets {answer:?}"));
                }
            }
            if answer.is_err() {
                continue;
            }
            expected = expected.without_parent_of(id);
            unreadable.remove(&id);
            done.push(id);
        }
        let compared = self
            .list()
            .map_err(|error| lost(&what, "a list of the lvols", error))
            .and_then(|mut memory| {
                let used = self.use_all(&mut memory, &control.unusable, &unreadable);
                used.map_err(|error| lost(&what, "I/O of the lvols", error))?;
                match memory.difference(&expected) {
                    None => Ok(()),
                    Some(difference) => Err(format!("{what}: in memory: {difference}")),
                }
            });
        if let Err(finding) = compared {
            self.found(finding);
            if !self.client.is_running() {
                return None;
            }
        }
        let patience = control.unloads.then_some(HANGS_AFTER);
        let (images, unloaded) = self.take_images(&image, patience);
        if let Some(step) = unloaded.err()
            && self.always_unloads(op, control.fault)
        {
            self.found(format!("{what}: {step}"));
        }
        Some(Detached { done, what, images })
    }

    /// Whether SPDK alone always unloads what the operation leaves. Sometimes it depends on timing.
    fn always_unloads(&mut self, op: &Op, fault: Fault) -> bool {
        const TRIES: usize = 5;
        let faults = self.report.faults;
        let always = (0..TRIES).all(|_| {
            let control = self.control(op, fault);
            control.is_some_and(|control| {
                self.forget(&control.images);
                control.unloads
            })
        });
        self.report.faults = faults;
        always
    }

    /// Looks at what is on the device, after a crash and after an unload.
    fn judge(&mut self, op: &Op, control: &Control, detached: &[Detached]) {
        type Image = for<'a> fn(&'a Images) -> Option<&'a PathBuf>;
        let kinds: [(&str, Image); 2] = [
            ("an unload", |images| images.unload.as_ref()),
            ("a crash", |images| Some(&images.crash)),
        ];
        let mut possible = vec![control.memory.clone()];
        for (kind, image) in kinds {
            let Some(control_image) = image(&control.images) else { continue };
            let mut unusable = BTreeSet::new();
            let before = loop {
                match self.look(control_image, &unusable) {
                    Ok(state) => break Some(state),
                    Err((Some(id), lost)) => {
                        let what = format!("after {kind}, a read of {id:#x} ({lost:?})");
                        self.left_out(op, control.fault, &what);
                        unusable.insert(id);
                    }
                    Err((None, lost)) => {
                        let what = format!("after {kind}, a load ({lost:?})");
                        self.left_out(op, control.fault, &what);
                        break None;
                    }
                }
            };
            let Some(before) = before else { continue };
            // What SPDK has only in memory since a write has failed, it writes with whatever it
            // writes next, also to close a blob that a detach had open.
            possible.insert(0, before);
            for detached in detached {
                let Some(image) = image(&detached.images) else { continue };
                let what = &detached.what;
                match self.look(image, &unusable) {
                    Ok(after) => {
                        let mut differences =
                            possible.iter().map(|before| detached.difference(before, &after));
                        let first = differences.next().expect("there is one");
                        if let Some(difference) = first
                            && differences.all(|difference| difference.is_some())
                        {
                            self.found(format!("{what}: after {kind}: {difference}"));
                        }
                    }
                    Err((id, lost)) => {
                        let step =
                            id.map_or("a load".to_owned(), |id| format!("a read of {id:#x}"));
                        self.found(format!("{what}: after {kind}: {step} ({lost:?})"));
                    }
                }
            }
        }
    }

    /// What a target says of the lvstore in a file. The error names the lvol that can't be read.
    fn look(&mut self, image: &Path, unusable: &BTreeSet<Id>) -> Result<State, (Option<Id>, Lost)> {
        // The load may write, and the image is to be looked at again.
        let copied = image.with_extension("look");
        copy(image, &copied);
        self.attach(&copied).map_err(|lost| (None, lost))?;
        let mut state = self.list().map_err(|lost| (None, lost))?;
        if self.read_all(&mut state, unusable).is_err() {
            // Once more, one by one, to find out which it is.
            copy(image, &copied);
            self.attach(&copied).map_err(|lost| (None, lost))?;
            for (id, call) in reads(&state, unusable) {
                let call = self.named(call);
                let answer = self.client.call_within(call, IS_LEFT_OUT_AFTER);
                state.note(id, &answer.map_err(|lost| (Some(id), lost))?);
            }
        }
        if self.unload(IS_LEFT_OUT_AFTER).is_err() {
            self.client.kill();
        }
        let _ = fs::remove_file(&copied);
        Ok(state)
    }
}

/// The RPCs that write to the lvols that bear it.
fn writes(state: &State, unusable: &BTreeSet<Id>) -> Vec<(Id, Call)> {
    let usable = state.lvols.iter().filter(|(id, lvol)| !unusable.contains(id) && !lvol.read_only);
    let write = |(&id, lvol): (&Id, &Lvol)| {
        // The lower half of a blob's id is a small number.
        let fill = 0xc0 + id % 0x40;
        let (name, size) = (&lvol.alias, CLUSTER);
        let params = json!({"name": name, "cluster": WRITTEN, "fill": fill, "cluster_size": size});
        (id, ("sweep_write", params))
    };
    usable.map(write).collect()
}

/// The RPCs that read the lvols that bear it: first those that most others read through, so that what
/// SPDK's fault is is seen once.
fn reads(state: &State, unusable: &BTreeSet<Id>) -> Vec<(Id, Call)> {
    let mut ids: Vec<Id> =
        state.lvols.keys().filter(|id| !unusable.contains(id)).copied().collect();
    ids.sort_by_key(|&id| Reverse(state.with_descendants(id).len()));
    ids.into_iter().map(|id| (id, reading(state.lvols[&id].alias.clone()))).collect()
}

/// The RPC that makes the base bdev.
fn aio(image: &Path, fallocate: bool) -> Call {
    let mut params = json!({"name": "base", "filename": image, "block_size": BLOCK});
    if fallocate {
        params["fallocate"] = true.into();
    }
    ("bdev_aio_create", params)
}

fn delete_base() -> Call {
    ("bdev_aio_delete", json!({"name": "base"}))
}

/// Copies a file, without what is zero.
fn copy(from: &Path, to: &Path) {
    write(&fs::read(from).expect("it can be read"), to);
}

fn write(bytes: &[u8], to: &Path) {
    let file = File::create(to).expect("a file can be made");
    file.set_len(bytes.len() as u64).expect("a file has a size");
    for (index, chunk) in bytes.chunks(PAGE).enumerate() {
        if chunk.iter().any(|&byte| byte != 0) {
            file.write_all_at(chunk, (index * PAGE) as u64).expect("a file can be written");
        }
    }
}

/// Copies the first lvstore, and gives it and its lvols other names and UUIDs, which are in the metadata
/// as texts.
fn copy_as(from: &Path, to: &Path, number: &str) {
    const CRC: std::ops::Range<usize> = 4092..4096;
    let mut bytes = fs::read(from).expect("it can be read");
    for page in bytes.chunks_exact_mut(PAGE) {
        let crc = crc32c(&page[..CRC.start]).to_le_bytes();
        if page[CRC] != crc {
            continue;
        }
        for at in 0..CRC.start - UUID_LEN {
            let text = &mut page[at..at + UUID_LEN];
            if text.starts_with(b"lvs00000") {
                text[3..8].copy_from_slice(number.as_bytes());
            } else if is_uuid(text) && !text.starts_with(&EXTERNAL_UUID.as_bytes()[..8]) {
                text[..5].copy_from_slice(number.as_bytes());
            }
        }
        let crc = crc32c(&page[..CRC.start]).to_le_bytes();
        page[CRC].copy_from_slice(&crc);
    }
    write(&bytes, to);
}

fn is_uuid(text: &[u8]) -> bool {
    text.iter().enumerate().all(|(index, byte)| match index {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}
