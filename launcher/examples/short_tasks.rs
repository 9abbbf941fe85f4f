use pronto_launcher::cgroup::Hierarchy;
use pronto_launcher::data_dir::DataDir;
use pronto_launcher::moment::Moment;
use pronto_launcher::runtime::exec::{ExecRuntime, ExecSettings, NodeVariables};
use pronto_launcher::runtime::{Events, Runtime};
use pronto_launcher::store::AttemptStore;
use pronto_launcher::supervisor::{Event, Job};
use pronto_payloads::demand::Demand;
use pronto_payloads::ids::*;
use pronto_payloads::place::AttemptId;
use pronto_payloads::start::*;
use std::sync::Arc;
use std::time::Duration;
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let shim = std::env::args().nth(1).unwrap();
    let parallel: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let n: u128 = 3000;
    let directory = tempfile::tempdir().unwrap();
    let data_dir = DataDir::new(directory.path().to_owned());
    std::fs::create_dir_all(data_dir.instances()).unwrap();
    let hierarchy = if std::env::var("NOCG").is_ok() {
        None
    } else {
        Some(Hierarchy::detect("pronto-bench").unwrap())
    };
    let settings = ExecSettings {
        data_dir: data_dir.clone(),
        shim_command: vec![shim],
        hierarchy,
        user: None,
        node: NodeVariables {
            name: "n".into(),
            address: String::new(),
            has_gpus: false,
        },
        log_cap_bytes: 1 << 20,
    };
    let (events, mut inbox) = Events::channel();
    let runtime = ExecRuntime::open(settings, events).await.unwrap();
    runtime.adopt(vec![]);
    let mut store = AttemptStore::open(data_dir, Duration::from_secs(60)).unwrap();
    let job = |i: u128| {
        Arc::new(Job {
            format: 1,
            id: AttemptId {
                owner: OwnerId([1; 16]),
                instance: InstanceId(i.to_le_bytes()),
                attempt: Attempt(1),
            },
            controller_epoch: ControllerEpoch(1),
            demand: Demand {
                cpu_millis: 10,
                memory_mib: 16,
                ..Demand::default()
            },
            gpus: vec![],
            received_at: Moment::now(),
            boot_id: BootId::default(),
            body: StartBody {
                tenant: "t".into(),
                name: "".into(),
                workload: "".into(),
                task: Task::Exec(ExecTask {
                    command: vec!["/bin/true".into()],
                    ..Default::default()
                }),
                env: vec![],
                timeout_ms: None,
                stop_grace_ms: 1000,
                on_disconnect: OnDisconnect::Keep,
                privileged: false,
                log_cap_bytes: None,
                hard_cpu: false,
                await_inputs: 0,
                stdin: false,
                keep_outputs_ms: 0,
            },
        })
    };
    let mut jobs = std::collections::HashMap::new();
    let mut next = 0;
    let begin = Moment::now();
    let mut launch =
        |next: &mut u128,
         store: &mut AttemptStore,
         jobs: &mut std::collections::HashMap<AttemptId, Arc<Job>>| {
            let j = job(*next);
            *next += 1;
            store.accept(&j).unwrap();
            runtime.prepare(&j);
            runtime.start(&j, None);
            jobs.insert(j.id, j);
        };
    for _ in 0..parallel {
        launch(&mut next, &mut store, &mut jobs);
    }
    let mut done = 0;
    while done < n {
        match inbox.recv().await.unwrap() {
            Event::Emptied(id) => {
                done += 1;
                let j = jobs.remove(&id).unwrap();
                store.emptied(&j);
                store.acknowledged(&j);
                if next < n {
                    launch(&mut next, &mut store, &mut jobs);
                }
            }
            Event::Failed { end, .. } => panic!("{end:?}"),
            _ => {}
        }
    }
    let wall = Moment::now().since(begin).as_secs_f64();
    let stat = std::fs::read_to_string(format!(
        "/proc/{}/stat",
        std::fs::read_to_string(directory.path().join("shim.pid"))
            .unwrap()
            .trim()
    ))
    .unwrap();
    let f: Vec<f64> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .skip(1)
        .map(|x| x.parse().unwrap_or(0.0))
        .collect();
    let own = std::fs::read_to_string("/proc/self/stat").unwrap();
    let o: Vec<f64> = own
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .skip(1)
        .map(|x| x.parse().unwrap_or(0.0))
        .collect();
    println!(
        "{:.0} tasks/s parallel {parallel}; shim self {:.0} us, children {:.0} us, launcher side {:.0} us per task",
        n as f64 / wall,
        (f[10] + f[11]) * 1e4 / n as f64,
        (f[12] + f[13]) * 1e4 / n as f64,
        (o[10] + o[11]) * 1e4 / n as f64
    );
    drop(runtime);
    pronto_launcher::end_workloads(directory.path(), 0)
        .await
        .unwrap();
}
