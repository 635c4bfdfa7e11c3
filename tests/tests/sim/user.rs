//! A user: submits the job, sometimes stops it and has it go on, and asks until it is over.

use super::{
    hosts,
    network::{self, Connections},
    scenario::Scenario,
    world::Shared,
};
use common::{
    ids::JobId,
    status::{JobStatus, Phase},
};
use proto::{
    leader::{self, Named, Search},
    v1::{JobRequest, ResumeRequest, StatusReply, SubmitRequest},
};
use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};
use tonic::{Response, Status};

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(8);
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(700);

enum Ask {
    Submit(SubmitRequest),
    Status,
    Stop,
    Resume,
}

/// The user's program.
pub async fn user(shared: Shared, scenario: Arc<Scenario>, job: JobId, output: String) -> turmoil::Result {
    let mut search = Search::parse(&hosts::urls(&scenario))?;
    let recipe = serde_json::to_string(&scenario.recipe(&output))?;
    let submit = SubmitRequest { recipe, world_size: scenario.world.0, job: job.to_string() };
    let here = Connections::new();
    let mut submitted = false;
    let mut stopping = false;
    loop {
        let wants_stop = submitted && shared.lock().history.stop_wanted;
        let ask = match (submitted, wants_stop, stopping) {
            (false, ..) => Ask::Submit(submit.clone()),
            (_, true, false) => Ask::Stop,
            _ => Ask::Status,
        };
        let stops = matches!(ask, Ask::Stop);
        if let Some(status) = request(&mut search, &here, &job, ask).await {
            if !submitted {
                submitted = true;
                shared.lock().history.acknowledged.insert(job.clone());
                shared.lock().say(&format!("{job} is acknowledged"));
            }
            if stops {
                stopping = true;
                shared.lock().say(&format!("{job} is asked to stop"));
            }
            if status.phase == Phase::Stopped {
                let resumed = request(&mut search, &here, &job, Ask::Resume).await;
                if resumed.is_some_and(|status| status.phase != Phase::Stopped) {
                    shared.lock().say(&format!("{job} is resumed"));
                    shared.lock().history.stop_wanted = false;
                    stopping = false;
                }
            } else if status.phase.exit_code().is_some() {
                let mut world = shared.lock();
                world.say(&format!("{job} is over: {:?}", status.phase));
                world.history.outcome = Some(status.phase);
                return Ok(());
            }
        }
        sleep(PAUSE).await;
    }
}

/// One request to whoever leads; absent when there was no answer of substance.
async fn request(search: &mut Search, here: &Connections, job: &JobId, ask: Ask) -> Option<JobStatus> {
    let asking = async {
        let mut client =
            network::jobs(search.current(), here).await.map_err(|error| Status::unknown(error.to_string()))?;
        let name = JobRequest { job: job.to_string() };
        match ask {
            Ask::Submit(submit) => client.submit(submit).await,
            Ask::Status => client.status(name).await,
            Ask::Stop => client.stop(name).await,
            Ask::Resume => client.resume(ResumeRequest { job: job.to_string(), ..ResumeRequest::default() }).await,
        }
    };
    let answer: Result<Response<StatusReply>, Status> =
        timeout(REQUEST, asking).await.unwrap_or_else(|_| Err(Status::unknown("no answer")));
    match answer {
        Ok(reply) => serde_json::from_str(&reply.into_inner().status).ok(),
        Err(status) => {
            let named = leader::named(&status);
            if named != Named::Unsaid || matches!(status.code(), tonic::Code::Unknown | tonic::Code::Unavailable) {
                search.failed(named);
            }
            None
        }
    }
}
