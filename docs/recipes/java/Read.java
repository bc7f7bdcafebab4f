import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * Rebuilds a table of seats from the outcomes, and keeps it: {@code java Read.java TOPIC FILE}
 *
 * <p>FILE holds the table together with the offsets up to which it is made, so that neither is ever ahead of the other.
 */
public class Read {
    record Row(
            String id, long sequence, long generation, String status, String show, String seat, long price,
            String currency, String user, String hold, String until, String checkout) {
        Row terms(JsonNode data) {
            var price = data.get("price");
            return new Row(id, sequence, generation, status, text(data, "show"), text(data, "seat"),
                    price.get("amount").asLong(), text(price, "currency"), user, hold, until, checkout);
        }

        Row state(String status, String user, String hold, String until, String checkout) {
            return new Row(id, sequence, generation, status, show, seat, price, currency, user, hold, until, checkout);
        }

        Row free(String status) {
            return state(status, null, null, null, null);
        }
    }

    /** Each seat's rows, one for each of its outcomes; the last one counts. */
    record Table(Map<Integer, Long> offsets, Map<String, List<Row>> seats) {}

    static final ObjectMapper JSON = new ObjectMapper();

    public static void main(String[] arguments) throws IOException {
        var topic = arguments[0];
        var file = Path.of(arguments[1]);
        var table = Files.exists(file) ? JSON.readValue(file.toFile(), Table.class)
                : new Table(new TreeMap<>(), new TreeMap<>());
        Map<String, Object> settings = Map.of(
                "bootstrap.servers", System.getenv("KAFKA"),
                "allow.auto.create.topics", false,
                "enable.auto.commit", false, // the offsets are ours
                "isolation.level", "read_committed",
                // Offsets of ours that the topic no longer has are an error, and no reason to skip what was lost.
                "auto.offset.reset", "none");
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new ByteArrayDeserializer())) {
            var partitions = consumer.partitionsFor(topic).stream()
                    .map(partition -> new TopicPartition(topic, partition.partition())).toList();
            consumer.assign(partitions);
            for (var partition : partitions) {
                var offset = table.offsets().get(partition.partition());
                if (offset == null) {
                    consumer.seekToBeginning(List.of(partition));
                } else {
                    consumer.seek(partition, offset);
                }
            }
            while (true) {
                var records = consumer.poll(Duration.ofSeconds(1));
                for (var record : records) {
                    apply(JSON.readTree(record.value()), table.seats());
                    table.offsets().put(record.partition(), record.offset() + 1);
                }
                if (!records.isEmpty()) {
                    save(file, table);
                }
            }
        }
    }

    /** Adds the row that an outcome makes to those of its seat. */
    static void apply(JsonNode outcome, Map<String, List<Row>> seats) {
        var seat = text(outcome, "subject");
        var sequence = outcome.get("sequence").intValue();
        var generation = outcome.get("generation").longValue();
        if (sequence == 0) {
            return; // a refusal about a ticket that does not exist
        }
        var rows = seats.computeIfAbsent(seat, unknown -> new ArrayList<>());
        var newest = rows.isEmpty() ? generation : rows.get(rows.size() - 1).generation();
        if (generation < newest) {
            return; // from before the database was put back: a repeat, or taken back
        }
        if (generation > newest && sequence <= rows.size()) {
            rows.subList(sequence - 1, rows.size()).clear(); // the database was put back to before these
        }
        var where = seat + ": sequence " + sequence + " of generation " + generation;
        if (sequence > rows.size() + 1) {
            throw new IllegalStateException(where + " follows " + rows.size() + ": outcomes are missing");
        }
        var before = sequence > 1 ? rows.get(sequence - 2)
                : new Row(null, 0, 0, null, null, null, 0, null, null, null, null, null);
        var id = text(outcome, "id");
        var now = new Row(id, sequence, generation, before.status(), before.show(), before.seat(), before.price(),
                before.currency(), before.user(), before.hold(), before.until(), before.checkout());
        var row = changed(now, text(outcome, "type"), outcome.get("data"));
        if (sequence == rows.size() + 1) {
            rows.add(row);
        } else if (!row.equals(rows.get(sequence - 1))) {
            var first = rows.get(sequence - 1).id();
            throw new IllegalStateException(where + " came again with other content: " + id + ", before " + first);
        }
    }

    /** The row as the outcome leaves it. */
    static Row changed(Row row, String type, JsonNode data) {
        return switch (type.replaceFirst("^holdfast\\.outcome\\.", "")) {
            case "ticket.listed.v1" -> row.free("available").terms(data);
            case "ticket.changed.v1" -> row.terms(data);
            case "ticket.held.v1" ->
                row.state("held", text(data, "user"), text(data, "hold"), text(data, "until"), null);
            case "ticket.hold_lengthened.v1" ->
                row.state(row.status(), row.user(), row.hold(), text(data, "until"), null);
            case "ticket.sold.v1" -> row.state("sold", text(data, "user"), row.hold(), null, text(data, "checkout"));
            case "ticket.released.v1", "ticket.expired.v1", "ticket.returned.v1" -> row.free("available");
            case "ticket.withdrawn.v1" -> row.free("withdrawn");
            // Nothing that this table shows.
            case "ticket.hold_priced.v1", "ticket.off_sale.v1" -> row;
            case "reservation.refused.v1", "reservation.refused.v2" -> row;
            default -> throw new IllegalStateException(
                    type + " is newer than this reader: the table would be wrong from here on");
        };
    }

    /** After a crash there is the old file or the new one, never a half. */
    static void save(Path file, Table table) throws IOException {
        var next = file.resolveSibling(file.getFileName() + ".new");
        Files.write(next, JSON.writeValueAsBytes(table));
        try (var written = FileChannel.open(next, StandardOpenOption.WRITE)) {
            written.force(true);
        }
        Files.move(next, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
    }

    static String text(JsonNode data, String field) {
        return data.hasNonNull(field) ? data.get(field).textValue() : null;
    }
}
