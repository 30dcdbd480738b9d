// Exit code 0: this mongod is the primary of its replica set of one, and the set knows it under FARM_HOST:FARM_PORT.
// It makes the set when there is none, and corrects the name of its member.
const NAME = "hyperfarm"; // as in start.sh
const NOT_YET_INITIALIZED = 94;
const host = `${process.env.FARM_HOST}:${process.env.FARM_PORT}`;
const admin = db.getSiblingDB("admin");

function configured() {
  try {
    return admin.runCommand({ replSetGetConfig: 1 }).config;
  } catch (error) {
    if (error.code !== NOT_YET_INITIALIZED) {
      throw error;
    }
    admin.runCommand({ replSetInitiate: { _id: NAME, members: [{ _id: 0, host }] } });
    return admin.runCommand({ replSetGetConfig: 1 }).config;
  }
}

try {
  admin.auth(process.env.MONGO_INITDB_ROOT_USERNAME, process.env.MONGO_INITDB_ROOT_PASSWORD);
  const config = configured();
  // With more members the names are their owner's business.
  if (config.members.length === 1 && config.members[0].host !== host) {
    config.members[0].host = host;
    config.version += 1;
    admin.runCommand({ replSetReconfig: config, force: true });
  }
} catch (error) {
  print(`not ready: ${error.message}`);
  quit(1);
}
quit(admin.hello().isWritablePrimary ? 0 : 1);
