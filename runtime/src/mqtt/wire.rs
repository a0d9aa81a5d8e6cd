//! Converts connect options and publications to the types of `rumqttc`, and back.

use std::fs;
use std::path::Path;
use std::time::Duration;

use firmware_config::agent::{Mqtt, MqttScheme};
use rumqttc::v5::MqttOptions;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectProperties, Filter, LastWill, LastWillProperties, Publish, PublishProperties,
};
use rumqttc::{NetworkOptions, TlsConfiguration, Transport};

use super::{ConnectError, LinkOptions, Publication, Qos, WINDOW};

/// A broker that sends nothing for twice this time counts as gone.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Timeout of the TCP and TLS handshakes and the CONNACK together.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The library's connect options. By default it would start clean sessions, and close the
/// connection on packets above 10 KiB.
///
/// # Errors
/// When a user, password or CA file cannot be used.
pub(super) fn connect_options(options: &LinkOptions) -> Result<MqttOptions, ConnectError> {
    let url = &options.mqtt.url;
    let (host, transport) = match url.scheme {
        MqttScheme::Tcp => (url.host.clone(), Transport::tcp()),
        MqttScheme::Tls => (
            url.host.clone(),
            Transport::tls_with_config(tls(&options.mqtt)?),
        ),
        // The library takes the host, port and path of a WebSocket from this text.
        MqttScheme::Websocket => (
            format!("ws://{}:{}{}", url.host, url.port, url.path),
            Transport::ws(),
        ),
        MqttScheme::WebsocketTls => (
            format!("wss://{}:{}{}", url.host, url.port, url.path),
            Transport::wss_with_config(tls(&options.mqtt)?),
        ),
    };
    let mut connect = MqttOptions::new(&options.client_id, host, url.port);
    connect
        .set_transport(transport)
        .set_keep_alive(KEEP_ALIVE)
        .set_clean_start(false)
        .set_manual_acks(options.manual_acks);
    connect
        .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
        .set_outgoing_inflight_upper_limit(WINDOW as u16);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    connect.set_network_options(network);

    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(whole_secs(options.session_expiry));
    properties.receive_maximum = Some(options.receive_max.max(1));
    properties.max_packet_size = Some(options.packet_bytes_max);
    connect.set_connect_properties(properties);

    if let Some(file) = &options.mqtt.username_file {
        let password = options
            .mqtt
            .password_file
            .as_deref()
            .map(secret)
            .transpose()?
            .unwrap_or_default();
        connect.set_credentials(secret(file)?, password);
    }
    if let Some(will) = &options.last_will {
        let publication = &will.publication;
        connect.set_last_will(LastWill {
            topic: publication.topic.clone().into(),
            message: publication.payload.clone(),
            qos: qos(publication.qos),
            retain: publication.retain,
            properties: Some(LastWillProperties {
                delay_interval: Some(whole_secs(will.delay)),
                payload_format_indicator: None,
                message_expiry_interval: publication.expiry.map(whole_secs),
                content_type: publication.content_type.clone(),
                response_topic: None,
                correlation_data: None,
                user_properties: publication.user_properties.clone(),
            }),
        });
    }
    Ok(connect)
}

/// First line of a certificate in a PEM file.
const PEM_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

fn tls(mqtt: &Mqtt) -> Result<TlsConfiguration, ConnectError> {
    // One provider per process; installing a second one fails and changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match &mqtt.ca_file {
        Some(path) => {
            let ca = read(path)?;
            // The library checks this too, but its error does not name the file.
            if !ca
                .windows(PEM_CERTIFICATE.len())
                .any(|bytes| bytes == PEM_CERTIFICATE)
            {
                let message = "found no certificate in PEM format; set ca-file to the certificate of the authority that signed the broker's".into();
                return Err(ConnectError::File {
                    path: path.into(),
                    message,
                });
            }
            Ok(TlsConfiguration::Simple {
                ca,
                alpn: None,
                client_auth: None,
            })
        }
        None => Ok(TlsConfiguration::default()),
    }
}

/// The text of a file that holds a secret, without the newline that editors add.
fn secret(path: &Path) -> Result<String, ConnectError> {
    let text = String::from_utf8(read(path)?).map_err(|_| ConnectError::File {
        path: path.into(),
        message: "expected UTF-8 text".into(),
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    fs::read(path).map_err(|error| ConnectError::File {
        path: path.into(),
        message: error.to_string(),
    })
}

/// A subscription that keeps the sender's retain flag, so that retained commands can be
/// distinguished from live ones.
pub(super) fn filter(path: &str, max_qos: Qos) -> Filter {
    let mut filter = Filter::new(path, qos(max_qos));
    filter.preserve_retain = true;
    filter
}

pub(super) fn qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
    }
}

/// Whole seconds, rounded up: an expiry of 0.4 s must not become 0.
fn whole_secs(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

pub(super) fn properties(publication: &Publication) -> PublishProperties {
    PublishProperties {
        message_expiry_interval: publication.expiry.map(whole_secs),
        response_topic: publication.response_topic.clone(),
        correlation_data: publication.correlation.clone(),
        user_properties: publication.user_properties.clone(),
        content_type: publication.content_type.clone(),
        ..PublishProperties::default()
    }
}

/// Size of the whole packet on the wire, in bytes.
pub(super) fn packet_bytes(publication: &Publication) -> usize {
    let publish = Publish::new(
        &publication.topic,
        qos(publication.qos),
        publication.payload.clone(),
        Some(properties(publication)),
    );
    // Without a packet id the library does not count its two bytes.
    publish.size() + 2
}

pub(super) fn received(publish: Publish) -> Publication {
    let properties = publish.properties.unwrap_or_default();
    Publication {
        // MQTT topic names are UTF-8; from a broker that violates this, the topic matches nothing.
        topic: String::from_utf8_lossy(&publish.topic).into_owned(),
        payload: publish.payload,
        qos: if publish.qos == QoS::AtMostOnce {
            Qos::AtMostOnce
        } else {
            Qos::AtLeastOnce
        },
        retain: publish.retain,
        expiry: properties
            .message_expiry_interval
            .map(|secs| Duration::from_secs(secs.into())),
        response_topic: properties.response_topic,
        correlation: properties.correlation_data,
        content_type: properties.content_type,
        user_properties: properties.user_properties,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_survives_the_round_trip() {
        let publication = Publication {
            topic: "egret/pool/p/req".into(),
            payload: "{}".into(),
            retain: true,
            expiry: Some(Duration::from_millis(1200)),
            response_topic: Some("r".into()),
            correlation: Some(vec![1, 2].into()),
            content_type: Some("application/json".into()),
            user_properties: vec![("schema".into(), "event/1".into())],
            ..Publication::default()
        };
        let mut publish = Publish::new(
            &publication.topic,
            qos(publication.qos),
            publication.payload.clone(),
            Some(properties(&publication)),
        );
        publish.retain = true;
        let back = received(publish);
        assert_eq!(
            back,
            Publication {
                expiry: Some(Duration::from_secs(2)),
                ..publication
            }
        );
    }

    #[test]
    fn a_missing_secret_names_its_file() {
        let error = secret(Path::new("/nowhere/password")).expect_err("no such file");
        insta::assert_snapshot!(error, @"/nowhere/password: No such file or directory (os error 2)");
    }
}
