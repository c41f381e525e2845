//! The result of `bdev_lvol_check_detach_parent`. `docs/jsonrpc.md` describes it.

use crate::base::error::Result;
use crate::base::json::{Json, Text};
use crate::base::task::Slices;
use crate::chain::ancestry::End;
use crate::chain::clusters::Ranges;
use crate::check::{Findings, Relatives, Undo, Volume};
use crate::detach::Named;

/// How many ranges are written before the clock is checked.
const AT_ONCE: usize = 64;

/// What was found, as a text.
pub async fn text(findings: &Findings, with_ranges: bool) -> Result<String> {
    let text = Text::begin()?;
    write(findings, with_ranges, &text.json()).await;
    text.end()
}

/// Writes what was found, in slices: an answer may have a thousand lvols and many ranges.
pub async fn write(findings: &Findings, with_ranges: bool, json: &Json) {
    let mut slices = Slices::start().await;
    let Findings { lvol, cluster_size, relatives, refusal, undo, warnings } = findings;
    let losses = relatives.is_some();
    json.begin_object();
    named(json, &lvol.named);
    json.name("cluster_size").number(*cluster_size);
    volume(json, lvol, losses, with_ranges, &mut slices).await;
    if let Some(relatives) = relatives {
        self::relatives(json, relatives, with_ranges, &mut slices).await;
    }
    json.name("refusal");
    match refusal {
        Some(error) => {
            json.begin_object();
            json.name("code").code(error.code());
            json.name("message").string(&error.to_string());
            json.end_object();
        }
        None => json.optional(None),
    }
    if let Some(undo) = undo {
        json.name("undo").begin_object();
        let (possible, name, text) = match undo {
            Undo::AsLongAs(condition) => (true, "as_long_as", condition),
            Undo::Never(why) => (false, "why_not", why),
        };
        json.name("possible").boolean(possible);
        json.name(name).string(text);
        json.end_object();
    }
    json.name("warnings").begin_array();
    for warning in warnings {
        json.begin_object();
        json.name("about").string(warning.about);
        json.name("message").string(&warning.message);
        json.end_object();
    }
    json.end_array();
    json.end_object();
}

fn named(json: &Json, named: &Named) {
    json.name("name").string(&named.name);
    let uuid = named.uuid.as_ref().map(|uuid| uuid.to_string_lossy());
    json.name("uuid").optional(uuid.as_deref());
}

/// The members of an object that is begun.
async fn volume(
    json: &Json,
    volume: &Volume,
    losses: bool,
    with_ranges: bool,
    slices: &mut Slices,
) {
    json.name("parent").optional(volume.parent.as_deref());
    json.name("read_only").boolean(volume.is_read_only);
    json.name("num_clusters").number(volume.num_clusters);
    json.name("num_allocated_clusters").number(volume.count.owned);
    if losses {
        json.name("num_lost_clusters").number(volume.count.lost);
    }
    if losses && with_ranges {
        ranges(json, &volume.count.ranges, slices).await;
    }
    json.name("open").boolean(volume.openers.is_open);
    json.name("claimed").boolean(volume.openers.is_claimed);
    json.name("num_io_channels").number(volume.traffic.channels);
    json.name("num_io_in_flight").number(volume.traffic.io);
    if !volume.traffic.limits.is_empty() {
        json.name("assigned_rate_limits").begin_object();
        for (name, limit) in &volume.traffic.limits {
            json.name(name).number(*limit);
        }
        json.end_object();
    }
}

async fn ranges(json: &Json, ranges: &Ranges, slices: &mut Slices) {
    json.name("lost_ranges").begin_array();
    for some in ranges.list.chunks(AT_ONCE) {
        for &(first, count) in some {
            json.begin_array();
            json.number(first);
            json.number(count);
            json.end_array();
        }
        slices.pause().await;
    }
    json.end_array();
    if let Some(end) = ranges.end {
        json.name("lost_ranges_end").number(end);
    }
}

async fn relatives(json: &Json, relatives: &Relatives, with_ranges: bool, slices: &mut Slices) {
    json.name("ancestors").begin_array();
    for ancestor in &relatives.ancestors {
        json.begin_object();
        json.name("kind").string("lvol");
        named(json, &ancestor.named);
        json.name("num_clusters").number(ancestor.num_clusters);
        json.name("num_shown_clusters").number(ancestor.shown);
        json.end_object();
        slices.pause().await;
    }
    if let End::External(external) = &relatives.end {
        json.begin_object();
        json.name("kind").string("external_snapshot");
        json.name("name").optional(external.name.as_deref());
        json.name("size").number(external.size);
        json.name("num_shown_clusters").number(relatives.shown_of_external);
        json.end_object();
    }
    json.end_array();
    json.name("cycle").boolean(relatives.end == End::Cycle);
    json.name("readers").begin_array();
    for reader in &relatives.readers {
        json.begin_object();
        named(json, &reader.named);
        volume(json, reader, true, with_ranges, slices).await;
        json.end_object();
        slices.pause().await;
    }
    json.end_array();
}
