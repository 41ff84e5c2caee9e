//! `launcher scale`: workers come and go while training goes on.

use convoy_proto::{ids::Role, messages::Phase};
use serde_json::json;

use super::{Session, losses::workers, signals::Signals};
use crate::outcome::Failure;

impl Session {
    /// Does what a person asked for, once the run trains.
    pub(super) async fn scale_if_asked(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        let phase = self.service.cluster().phase();
        match self.scale_to.take_if(|_| phase >= Phase::Training) {
            Some(_) if phase > Phase::Training => self.progress.say("the run stops; the number of workers stays"),
            Some(wanted) => self.scale(wanted, signals).await?,
            None => {}
        }
        Ok(())
    }

    /// Starts workers, or lets some go, so that there are so many.
    pub(super) async fn scale(&mut self, wanted: u32, signals: &mut Signals) -> Result<(), Failure> {
        self.prepared.make_room(wanted);
        let (before, start, leave, era) = {
            let mut cluster = self.service.cluster();
            let before = cluster.count();
            // From here on, nobody joins beyond it.
            cluster.scale(wanted);
            (before, cluster.await_workers(wanted), cluster.beyond(wanted), cluster.era())
        };
        self.progress.say(&format!("{} in place of {before}", workers(wanted)));
        self.metric(json!({ "event": "scale", "workers": wanted, "before": before }));
        for rank in start {
            // One that is on its way will be there soon.
            let is_new = self.service.cluster().workers()[rank as usize].is_none();
            let place = (Role::Worker, rank);
            if !self.away.contains_key(&place) {
                // It was a node's that nobody waits for any more.
                self.nodes.nodes().free(place);
            }
            if !is_new || !self.starting.contains_key(&place) {
                self.start(place)?;
            }
        }
        self.stop_coming(wanted, signals).await?;
        for member in leave {
            let events = self.service.cluster().lose(member, false);
            self.service.publish();
            self.kill_one((member.role, member.rank));
            for event in events.unwrap_or_default() {
                if self.service.cluster().era() == era {
                    self.heed(event, signals).await?;
                }
            }
        }
        self.save_summary();
        Ok(())
    }

    /// Lets go who is on the way to a place beyond a number.
    async fn stop_coming(&mut self, wanted: u32, signals: &mut Signals) -> Result<(), Failure> {
        let places = self.service.cluster().workers().len() as u32;
        for rank in wanted..places {
            self.restarts.cancel((Role::Worker, rank));
            self.away.remove(&(Role::Worker, rank));
            let is_there = self.service.cluster().workers()[rank as usize].as_ref().is_some_and(|there| there.is_alive);
            if is_there {
                continue;
            }
            if self.starting.remove(&(Role::Worker, rank)).is_some() {
                self.kill_one((Role::Worker, rank));
            }
            let events = self.service.cluster().give_up(rank);
            for event in events {
                self.heed(event, signals).await?;
            }
        }
        Ok(())
    }
}
