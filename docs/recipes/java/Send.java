import com.fasterxml.jackson.databind.ObjectMapper;
import io.cloudevents.CloudEvent;
import io.cloudevents.core.builder.CloudEventBuilder;
import io.cloudevents.core.message.Encoding;
import io.cloudevents.jackson.JsonCloudEventData;
import io.cloudevents.jackson.JsonFormat;
import io.cloudevents.kafka.CloudEventSerializer;
import java.net.URI;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Sells a seat by events: {@code java Send.java binary|structured list-and-hold|buy SHOP TIME}
 *
 * <p>TIME is when the shop decided it. Whoever is not sure whether an event arrived sends it again, with the same id and time.
 */
public class Send {
    static final ObjectMapper JSON = new ObjectMapper();

    final KafkaProducer<String, CloudEvent> producer;
    final String shop;
    final OffsetDateTime time;
    final List<Future<?>> sent = new ArrayList<>();

    public static void main(String[] arguments) throws ExecutionException, InterruptedException {
        var serializer = new CloudEventSerializer();
        var mode = Encoding.valueOf(arguments[0].toUpperCase());
        serializer.configure(
                Map.of(
                        CloudEventSerializer.ENCODING_CONFIG, mode,
                        CloudEventSerializer.EVENT_FORMAT_CONFIG, JsonFormat.CONTENT_TYPE),
                false);
        Map<String, Object> settings = Map.of("bootstrap.servers", System.getenv("KAFKA"));
        // By default it is idempotent: no event twice or out of order by a retry of the client's.
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), serializer)) {
            var send = new Send(producer, arguments[2], OffsetDateTime.parse(arguments[3]));
            switch (arguments[1]) {
                case "list-and-hold" -> send.listAndHold();
                case "buy" -> send.buy();
                default -> throw new IllegalArgumentException(arguments[1]);
            }
            for (var delivery : send.sent) {
                delivery.get();
            }
        }
    }

    Send(KafkaProducer<String, CloudEvent> producer, String shop, OffsetDateTime time) {
        this.producer = producer;
        this.shop = shop;
        this.time = time;
    }

    void listAndHold() {
        for (var number : List.of(1, 2)) {
            var price = Map.of("amount", 4500, "currency", "EUR");
            var terms = Map.of("show", shop, "seat", "Row A, seat " + number, "price", price);
            send("reservations", "list-" + number, "ticket.listed.v1", seat(number), terms);
        }
        for (var user : List.of("ann", "bob")) { // bob comes second, and is refused
            send("reservations", "hold-" + user, "reservation.requested.v1", seat(1), Map.of("user", shop + "/" + user));
        }
        send("payments", "register-ann", "user.registered.v1", shop + "/ann", Map.of("email", "ann@example.org"));
    }

    void buy() {
        var order = Map.of(
                "checkout", shop + "/order-1", "tickets", List.of(seat(1)), "payment_method", "pm_card_visa");
        send("payments", "order-1", "checkout.requested.v1", shop + "/ann", order);
    }

    void send(String topic, String id, String kind, String subject, Map<String, ?> data) {
        var event = CloudEventBuilder.v1()
                .withId(shop + "/" + id) // with the source, names the event for ever
                .withSource(URI.create("https://shop.example/recipes/java"))
                .withType("holdfast." + kind)
                .withSubject(subject)
                .withTime(time)
                .withData("application/json", JsonCloudEventData.wrap(JSON.valueToTree(data)))
                .build();
        // The key is the subject, so that a seat's events keep their order.
        sent.add(producer.send(new ProducerRecord<>(topic, subject, event)));
    }

    String seat(int number) {
        return shop + "/A" + number;
    }
}
