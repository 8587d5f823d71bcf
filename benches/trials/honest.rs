//! Honest turns: served by a node on an engine of any kind, claimed, and checked by an auditor.

use std::collections::BTreeMap;

use tally::node::verify::{Verdict, verify};
use tally::proof::Blob;
use tally::session::{PromptRequest, Refusal};
use tally::units::{JobId, TurnNo};
use tally_engine::{EngineOptions, Isa, KvType};

use crate::auditors::Auditors;
use crate::lots::Lots;
use crate::models::{Speakers, Subject};
use crate::node::{Heard, Node};
use crate::record::{Record, claim_of};
use crate::requests::{Reader, Size, ask, kv_type, options};
use crate::tallies::Tallies;

/// Sessions of one node that run at once, and turns of each between two starts of the engine.
struct Shape {
    jobs: usize,
    starts: usize,
    turns: usize,
}

/// A node's life: some sessions, some engines.
pub struct Round<'a> {
    pub number: u64,
    pub seed: u64,
    /// The model, and its place among the subjects.
    pub subject: (usize, &'a Subject),
}

impl Round<'_> {
    /// Serves, claims and checks; keeps what was claimed.
    pub async fn run(
        &self,
        (speakers, auditors): (&mut Speakers, &mut Auditors),
        tallies: &mut Tallies,
    ) -> Vec<Record> {
        let (place, subject) = self.subject;
        let mut lots = Lots::of(self.seed, "round", self.number);
        let kv = kv_type(&mut lots);
        let speaker = speakers.of(&subject.path, kv);
        let mut size = Size {
            vocab: speaker.vocab(),
            eos_ids: speaker.eos_ids().to_vec(),
            is_real: subject.is_real,
            is_slow: false,
        };
        let shape = match subject.is_real {
            true => Shape { jobs: 4, starts: 2, turns: 2 },
            false => Shape { jobs: 8, starts: 2, turns: 3 },
        };
        let jobs: Vec<JobId> = (1..=shape.jobs as u64).filter_map(JobId::new).collect();
        // Some deposits end in the middle of a turn.
        let deposit = |lots: &mut Lots| if lots.is(15) { lots.within(5, 80) } else { 100_000 };
        let deposits: Vec<_> = jobs.iter().map(|job| (*job, deposit(&mut lots) as u64)).collect();
        let mut told: BTreeMap<(JobId, TurnNo), String> = BTreeMap::new();
        let mut node: Option<Node> = None;
        for start in 0..shape.starts {
            let options = EngineOptions { kv_type: kv, ..options(&mut lots, subject.is_real) };
            size.is_slow = subject.is_real && options.isa == Some(Isa::Scalar);
            tallies.engine(&options);
            let running = match node.take() {
                None => Node::start(&subject.path, options, &deposits).await,
                Some(before) => before.restart(&subject.path, options).await,
            };
            let heard = self.session(&running, (&jobs, &size), (start, shape.turns)).await;
            told.extend(heard);
            node = Some(running);
        }
        let node = node.unwrap();
        let mut records = Vec::new();
        for job in jobs {
            node.claim(job);
            let texts = told.iter().filter(|((of, _), _)| *of == job);
            let texts = texts.map(|((_, turn), text)| (*turn, text.clone())).collect();
            records.extend(self.check((&node, job), (place, kv, texts), auditors, tallies));
        }
        records
    }

    /// Turns of all jobs, the jobs side by side.
    async fn session(
        &self,
        node: &Node,
        (jobs, size): (&[JobId], &Size),
        (start, turns): (usize, usize),
    ) -> Vec<((JobId, TurnNo), String)> {
        let each = jobs.iter().map(|job| async move {
            let what = format!("session {} {job} {start}", self.number);
            let mut lots = Lots::of(self.seed, &what, 0);
            let mut heard = Vec::new();
            while heard.len() < turns {
                let mut two = Vec::new();
                // Now and then a client asks twice at once.
                for _ in 0..if lots.is(15) { 2 } else { 1 } {
                    let (request, mut reader) = ask(&mut lots, (*job, &node.model), size);
                    let is_last = heard.len() + 1 == turns && job.get() == 1;
                    if is_last && lots.is(40) {
                        reader = Reader::Stops(lots.below(10) as u32);
                    }
                    let claim_each = lots.of_these(&[1000, 1000, 7, 2]);
                    two.push((request, (reader, claim_each)));
                }
                let spoken = self.turns(node, *job, two).await;
                if spoken.is_empty() {
                    break;
                }
                heard.extend(spoken.into_iter().map(|it| ((*job, it.turn), it.text)));
            }
            heard
        });
        futures_util::future::join_all(each).await.into_iter().flatten().collect()
    }

    async fn turns(
        &self,
        node: &Node,
        job: JobId,
        asked: Vec<(PromptRequest, (Reader, usize))>,
    ) -> Vec<Heard> {
        let mut begun = Vec::new();
        for (mut request, how) in asked {
            let mut started = node.begin(request.clone()).await;
            // A conversation that has filled the context begins anew.
            if matches!(started, Err(Refusal::ContextLength { .. })) {
                let prompt = tally::engine::Prompt::Raw("again".into());
                request.input = tally::session::PromptInput::Complete(prompt);
                started = node.begin(request).await;
            }
            match started {
                Ok((turn, reply)) => begun.push(node.listen((job, turn), reply, how)),
                Err(
                    Refusal::PaymentRequired { .. }
                    | Refusal::Unavailable(_)
                    | Refusal::Busy
                    | Refusal::ContextLength { .. },
                ) => {}
                Err(other) => panic!("a request was refused: {other}"),
            }
        }
        futures_util::future::join_all(begun).await
    }

    /// Checks all claims of a job; the last one is kept.
    fn check(
        &self,
        (node, job): (&Node, JobId),
        (subject, kv_type, texts): (usize, KvType, BTreeMap<TurnNo, String>),
        auditors: &mut Auditors,
        tallies: &mut Tallies,
    ) -> Option<Record> {
        let mut claims = node.claims(job);
        let (blob, proof) = claims.pop()?;
        let last = Record { subject, kv_type, blob, proof, texts };
        let path = &self.subject.1.path;
        for (blob, proof) in claims {
            let texts = BTreeMap::new();
            let earlier = Record { subject, kv_type, blob, proof, texts };
            let verdict = examine(&earlier, (path, auditors));
            if !is_right(&verdict) {
                tallies.false_reject(&self.name(job), &earlier, &verdict);
            }
        }
        let verdict = examine(&last, (path, auditors));
        if is_right(&verdict) {
            tallies.honest(&self.subject.1.name, &last.blob);
            return Some(last);
        }
        tallies.false_reject(&self.name(job), &last, &verdict);
        None
    }

    fn name(&self, job: JobId) -> String {
        format!("round {} job {job} of seed {}", self.number, self.seed)
    }
}

/// Everything was checked, nothing is wrong, every token came out again.
fn is_right(verdict: &Verdict) -> bool {
    let is_right = verdict.is_ok() && verdict.is_complete();
    is_right && verdict.tokens > 0 && verdict.tokens == verdict.tokens_derived
}

/// What an auditor says who has bytes and weights.
fn examine(record: &Record, (path, auditors): (&std::path::Path, &mut Auditors)) -> Verdict {
    let bytes = record.blob.encode();
    let blob = Blob::decode(&bytes).unwrap();
    assert_eq!(blob, record.blob, "a blob survives its bytes");
    verify(&blob, &claim_of(record), auditors.of(path, record)).unwrap()
}
