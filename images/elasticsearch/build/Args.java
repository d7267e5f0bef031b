import java.nio.file.Path;
import org.elasticsearch.bootstrap.ServerArgs;
import org.elasticsearch.common.io.stream.OutputStreamStreamOutput;
import org.elasticsearch.common.settings.KeyStoreWrapper;
import org.elasticsearch.common.settings.Settings;

/** Writes what the server reads from its standard input, with a gap for the settings. Its own launcher would stay: 100 MB more per member. */
class Args {
    public static void main(String[] none) throws Exception {
        try (var out = new OutputStreamStreamOutput(System.out)) {
            new ServerArgs(false, false, null, KeyStoreWrapper.create(), Settings.builder().put("GAP", "GAP").build(),
                           Path.of("/run/db/config"), Path.of("/run/db/logs")).writeTo(out);
        }
    }
}
