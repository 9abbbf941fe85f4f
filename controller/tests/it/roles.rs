//! Every route of the OpenAPI document, tried as every role and as a stranger to the cluster.

use crate::api::{Cluster, sim};
use crate::certs::Ca;
use crate::client::Client;
use pronto_controller::api::openapi;
use pronto_controller::api::routes::{Access, ROUTES};
use pronto_controller::api::types::{
    ErrorBody, ErrorCode, EventList, InstanceDetail, InstanceState, SubmitResponse,
};
use serde_json::json;

const ROLES: [(&str, &str); 5] = [
    ("user", "spiffe://lab/user/physics/ada"),
    ("admin", "spiffe://lab/admin/root"),
    ("launcher", "spiffe://lab/launcher/n1"),
    ("scheduler", "spiffe://lab/scheduler/s1"),
    ("controller", "spiffe://lab/controller/c2"),
];

fn allowed(access: Access, role: &str) -> bool {
    match access {
        Access::Everybody => true,
        Access::Members => role == "user" || role == "admin",
        Access::Admins => role == "admin",
        Access::Operators => role != "user",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_is_open_to_its_roles_alone() {
    let cluster = Cluster::start().await;
    let document = serde_json::to_value(openapi::document()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let mut tried = 0;
    for (role, uri) in ROLES {
        let credentials = cluster.ca.credentials(uri);
        for (path, methods) in paths {
            for method in methods.as_object().unwrap().keys() {
                let route = ROUTES
                    .iter()
                    .find(|route| route.path == path && route.method == method)
                    .unwrap();
                let concrete = path
                    .replace("{request_id}", "0192b3c4-0000-7000-8000-000000000000")
                    .replace("{id}", "0192b3c4-0000-7000-8000-000000000000")
                    .replace(['{', '}'], "");
                let mut client = cluster.controller.client(credentials.clone()).await;
                let response = client.raw(&method.to_uppercase(), &concrete, "{}").await;
                tried += 1;
                let forbidden = response.status == 403
                    && response.json::<ErrorBody>().code == ErrorCode::Forbidden;
                assert_eq!(
                    forbidden,
                    !allowed(route.access, role),
                    "{role} {method} {path}: {} {}",
                    response.status,
                    String::from_utf8_lossy(&response.body)
                );
                assert_ne!(response.status, 500, "{role} {method} {path}");
            }
        }
    }
    assert_eq!(tried, ROLES.len() * ROUTES.len());
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_not_let_in() {
    let cluster = Cluster::start().await;
    // Another cluster's CA, and another cluster's name under ours.
    let stranger = Ca::new().credentials("spiffe://lab/admin/root");
    let elsewhere = cluster.ca.credentials("spiffe://elsewhere/admin/root");
    for credentials in [stranger, elsewhere] {
        let address = cluster.controller.address;
        let Ok(mut client) = Client::try_connect(address, credentials).await else {
            continue;
        };
        let asked = tokio::spawn(async move { client.get("/healthz").await.status });
        assert!(asked.await.is_err(), "the connection is closed unanswered");
    }
    cluster.controller.stop().await;
}

/// Every route that names something, tried by a user of another tenant: the answer is the one for
/// something that does not exist, to the letter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_anothers_is_answered_as_if_it_did_not_exist() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin().await;
    for name in ["physics", "biology"] {
        let made = admin.post("/v1/tenants", &json!({"name": name})).await;
        assert_eq!(made.status, 201);
    }
    let mut ada = cluster.controller.client(cluster.ca.user("physics")).await;
    let workload = json!({"name": "w1", "spec": sim(0, 0)});
    assert_eq!(ada.post("/v1/workloads", &workload).await.status, 201);
    let body = json!({"name": "mine", "spec": sim(60_000, 0), "count": 1});
    let submitted: SubmitResponse = ada.post("/v1/instances", &body).await.expect(201);
    let id = submitted.instances[0].to_string();
    let real = [
        ("{request_id}", submitted.submission.to_string()),
        ("{id}", id.clone()),
        ("{name}", "w1".to_owned()),
        ("{tenant}", "physics".to_owned()),
    ];
    let none = [
        (
            "{request_id}",
            "0192b3c4-0000-7000-8000-0000000000aa".to_owned(),
        ),
        ("{id}", "0192b3c4-0000-7000-8000-0000000000bb".to_owned()),
        ("{name}", "w9".to_owned()),
        ("{tenant}", "nowhere".to_owned()),
    ];
    let with = |path: &str, values: &[(&str, String)]| {
        values.iter().fold(path.to_owned(), |path, (name, value)| {
            path.replace(name, value)
        })
    };
    let without = |body: &[u8], values: &[(&str, String)]| {
        let text = String::from_utf8_lossy(body).into_owned();
        values.iter().fold(text, |text, (name, value)| {
            text.replace(value.as_str(), name)
        })
    };
    let document = serde_json::to_value(openapi::document()).unwrap();
    let mut bob = cluster.controller.client(cluster.ca.user("biology")).await;
    let mut tried = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        // Nodes belong to nobody.
        if !path.contains('{') || path.contains("{node}") {
            continue;
        }
        for method in methods.as_object().unwrap().keys() {
            let body = if path.ends_with("/exec") {
                json!({"command": ["true"]})
            } else if method == "put" && path.starts_with("/v1/workloads") {
                // One's own workload of that name is another thing.
                continue;
            } else {
                json!({})
            };
            let suffix = if path.ends_with("/files") {
                "?path=x"
            } else {
                ""
            };
            let method = method.to_uppercase();
            let mut answers = Vec::new();
            for values in [&real, &none] {
                let concrete = with(path, values) + suffix;
                let response = bob.raw(&method, &concrete, body.to_string()).await;
                assert!(
                    response.status == 404 || response.status == 403,
                    "{method} {concrete}: {}",
                    response.status
                );
                answers.push((response.status, without(&response.body, values)));
            }
            assert_eq!(answers[0], answers[1], "{method} {path}");
            tried += 1;
        }
    }
    assert!(tried > 15, "{tried} routes name something");
    // Nor by a name, or by the tail of an id.
    for guess in ["mine", &id[28..], &id[..18]] {
        let response = bob.get(&format!("/v1/instances/{guess}")).await;
        assert_eq!(response.status, 404, "{guess}");
    }
    let still = ada.get(&format!("/v1/instances/{id}")).await;
    assert_eq!(still.status, 200, "nothing of it was done");
    cluster.controller.stop().await;
}

/// Each change leaves an event that says who did it and from where; no route changes events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_is_in_the_record() {
    let document = serde_json::to_value(openapi::document()).unwrap();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let methods: Vec<&String> = methods.as_object().unwrap().keys().collect();
        assert!(
            !path.starts_with("/v1/events") || methods == ["get"],
            "{path}"
        );
    }
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin().await;
    let made = admin.post("/v1/tenants", &json!({"name": "lab"})).await;
    assert_eq!(made.status, 201);
    let mut ada = cluster.controller.client(cluster.ca.user("lab")).await;
    let body = json!({"spec": sim(60_000, 0), "count": 1});
    let submitted: SubmitResponse = ada.post("/v1/instances", &body).await.expect(201);
    let id = submitted.instances[0];
    loop {
        let shown: InstanceDetail = ada.get(&format!("/v1/instances/{id}")).await.expect(200);
        if shown.instance.state == InstanceState::Running {
            break;
        }
        tokio::task::yield_now().await;
    }
    let workload = json!({"name": "w", "spec": sim(0, 0)});
    let instance = format!("/v1/instances/{id}");
    let (exec, files) = (
        format!("{instance}/exec"),
        format!("{instance}/files?path=x"),
    );
    let (stop, restart) = (format!("{instance}/stop"), format!("{instance}/restart"));
    let changes = [
        (
            "admin",
            "PATCH",
            "/v1/tenants/lab",
            json!({"privileged": true}),
        ),
        ("admin", "PATCH", "/v1/quotas/lab", json!({"instances": 50})),
        ("user", "POST", "/v1/workloads", workload.clone()),
        ("user", "PUT", "/v1/workloads/w", workload),
        ("user", "POST", "/v1/instances", body),
        ("user", "POST", exec.as_str(), json!({"command": ["true"]})),
        ("user", "PUT", files.as_str(), json!({})),
        ("user", "POST", restart.as_str(), json!({})),
        ("user", "POST", stop.as_str(), json!({"grace_ms": 1})),
        ("user", "DELETE", instance.as_str(), json!({})),
        ("user", "DELETE", "/v1/workloads/w", json!({})),
        ("admin", "POST", "/v1/nodes/n1/drain", json!({})),
        ("admin", "POST", "/v1/nodes/n1/restore", json!({})),
    ];
    let mut last = 0;
    for (role, method, path, body) in changes {
        let (client, actor) = match role {
            "admin" => (&mut admin, "admin/root"),
            _ => (&mut ada, "user/lab/ada"),
        };
        let response = client.raw(method, path, body.to_string()).await;
        assert!(
            response.status < 300,
            "{method} {path}: {} {}",
            response.status,
            String::from_utf8_lossy(&response.body)
        );
        let list: EventList = admin.get("/v1/events?limit=500").await.expect(200);
        let found = list.events.iter().any(|event| {
            event.number > last && event.actor == actor && event.source.starts_with("127.0.0.1:")
        });
        assert!(found, "{method} {path} left no event of {actor}");
        last = list
            .events
            .iter()
            .map(|event| event.number)
            .max()
            .unwrap_or(last);
    }
    cluster.controller.stop().await;
}
