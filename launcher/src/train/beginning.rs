//! What a launcher begins with: nothing, or what another left off with.

use convoy_proto::ids::Step;

use super::{prepare::Prepared, review::Review};
use crate::{coordinator::core::Cluster, outcome::Failure, resume::Resumed, run_dir::RunDir, summary::Notes};

/// Where it begins.
pub(super) struct Beginning {
    pub run_dir: RunDir,
    pub cluster: Cluster,
    pub notes: Notes,
    pub review: Review,
    /// Lines for people.
    pub lines: Vec<String>,
    /// The newest checkpoint.
    pub newest: Option<Step>,
    /// How large the checkpoint is that servers take.
    pub restored_bytes: u64,
}

impl Beginning {
    /// Of a run that is ready to start, from its first step or from where it is resumed.
    ///
    /// # Errors
    /// There can be no such directory.
    pub fn of(prepared: &mut Prepared, resumed: Option<Resumed>) -> Result<Beginning, Failure> {
        let cluster = |prepared: &Prepared| Cluster::new(prepared.config.clone(), prepared.reference());
        let Some(Resumed { run_dir, era, origin, cut, lines, bytes }) = resumed else {
            // A name may be another's by now, and then there is another.
            let run_dir = prepared.create_run_dir(None)?;
            return Ok(Beginning {
                run_dir,
                cluster: cluster(prepared),
                notes: Notes::default(),
                review: Review::new(prepared.config.patience),
                lines: Vec::new(),
                newest: None,
                restored_bytes: 0,
            });
        };
        let newest = origin.restore.as_ref().map(|_| origin.commits);
        let cluster = cluster(prepared).resumed((era, origin), cut.workers);
        let (notes, review) = (cut.notes, cut.review);
        Ok(Beginning { run_dir, cluster, notes, review, lines, newest, restored_bytes: bytes })
    }
}
