//! Disks that are lost, in whole or in part, while nobody looks.
//!
//! A replica whose data is not whole begins anew under another identity, and what the old one
//! acknowledged counts on its disk no more. So only one is taken at a time: the next one when the
//! leader has every replica as a voter that answers, and none of those that were lost.

use std::{collections::BTreeSet, path::PathBuf};

use pygmy_client::members::status_of;
use pygmy_protocol::{
    Env,
    env::{FakeDisk, Random},
    registration::{CatalogStatus, MemberStatus},
};

use crate::{cluster::Cluster, rng::Rng, trace::note};

/// What is lost of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// All of it.
    Everything,
    /// The file with the identity, or what stands in it.
    Identity,
    /// The file with the vote, or the whole log.
    Vote,
    /// Some bytes of the log, or a segment that others follow.
    Log,
}

/// So much of a segment is many flights of records: those in its first quarter were fsynced before
/// later ones were written, which say so. The last ones may look like a torn tail.
const SEGMENT_BYTES_MIN: usize = 8192;
/// Bytes of a segment that are lost together: more than the alignment between two records.
const BYTES_LOST: usize = 64;

impl Loss {
    /// One that can happen to `disk`.
    pub(crate) fn draw(rng: &Rng, disk: &FakeDisk) -> Loss {
        let loss = *rng.pick(&[Loss::Everything, Loss::Identity, Loss::Vote, Loss::Log, Loss::Log]);
        let can = loss != Loss::Log || !segments(disk).is_empty();
        if can { loss } else { Loss::Everything }
    }

    /// Does it to the files of a replica that does not run; all but SQLite's.
    pub(crate) fn strike(self, rng: &Rng, disk: &FakeDisk) {
        note(format_args!("lost: {self:?}"));
        let named = |name: &str| disk.paths().into_iter().find(|path| path.ends_with(name));
        match self {
            Loss::Everything => disk.paths().iter().for_each(|path| disk.lose(path)),
            Loss::Identity => match named("identity.json") {
                Some(path) if rng.percent(50) => disk.damage(&path, |bytes| bytes.truncate(3)),
                path => path.iter().for_each(|path| disk.lose(path)),
            },
            Loss::Vote if rng.percent(50) => {
                let of_log = |path: &&PathBuf| path.iter().any(|part| part == "raft-log");
                disk.paths().iter().filter(of_log).for_each(|path| disk.lose(path));
            }
            Loss::Vote => named("raft-log/state").iter().for_each(|path| disk.lose(path)),
            Loss::Log => {
                let mut segments = segments(disk);
                let (path, used) = segments.swap_remove(rng.below(segments.len() as u64) as usize);
                if !segments.is_empty() && segments.iter().any(|(other, _)| *other > path) {
                    return disk.lose(&path);
                }
                disk.damage(&path, |bytes| {
                    let from = rng.below(used as u64 / 4) as usize;
                    bytes.iter_mut().skip(from).take(BYTES_LOST).for_each(|byte| *byte ^= 0xff);
                });
            }
        }
    }
}

/// The log's segments that are long enough, in order, and how many of their bytes are used.
fn segments(disk: &FakeDisk) -> Vec<(PathBuf, usize)> {
    let is_one = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
    let used = |path: PathBuf| {
        let used = disk.contents(&path).iter().rposition(|byte| *byte != 0).unwrap_or(0);
        (used > SEGMENT_BYTES_MIN).then_some((path, used))
    };
    disk.paths().into_iter().filter(is_one).filter_map(used).collect()
}

/// The identities that were lost in a run.
#[derive(Default)]
pub(crate) struct Lost(BTreeSet<u64>);

impl Lost {
    /// The members of the cluster, if all replicas are voters that answer and none of the lost is
    /// one of them. All replicas must say so: what the leader alone knows may die with it.
    pub(crate) async fn all_are_well(
        &self,
        env: &Env,
        cluster: &Cluster,
    ) -> Option<Vec<MemberStatus>> {
        let urls = cluster.urls("catalog");
        let mut leading = None;
        for url in &urls {
            let status = status_of(env, cluster.secret(), url).await.ok()?;
            let CatalogStatus { role, members, .. } = status;
            let leads = role == "leader";
            let well =
                |m: &MemberStatus| m.voter && (m.answers || !leads) && !self.0.contains(&m.id);
            if members.len() != urls.len() || !members.iter().all(well) {
                return None;
            }
            leading = leads.then_some(members).or(leading);
        }
        leading
    }

    /// Notes that the replica of the machine `name` has lost its identity.
    pub(crate) fn note(&mut self, members: &[MemberStatus], name: &str) {
        let of_machine = |m: &&MemberStatus| {
            m.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest == "-catalog")
        };
        self.0.extend(members.iter().find(of_machine).map(|member| member.id));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
